"""The journal of a job: what of its results is on disk, and therefore counts.

Mini-batches are written in the order of the input. For each one, its rows are added to predictions.csv, its
failed files to failed.csv, and then a line to the journal, which says how long both files are now. All is
written at once, nothing waits in this process. Another run goes on from the last whole line: it cuts both
files to the length that the line says, and continues with the mini-batch after it.

The journal is the file that Azure calls logs/sys/job_report/processed_mini-batches.csv.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

JOURNAL = (
    *("mini_batch", "files", "rows", "failed_files", "attempts", "instance", "process", "seconds"),
    *("predictions_bytes", "failed_bytes"),  # of the files, up to and with this mini-batch
)
FAILED = ("file", "mini_batch", "reason")


@dataclass
class Counts:
    """`files` = `succeeded` + `failed` + those not scored because the job ended early."""

    files: int
    mini_batches: int
    processed: int = 0  # mini-batches
    rows: int = 0
    succeeded: int = 0  # files
    failed: int = 0  # files

    @property
    def not_scored(self) -> int:
        return self.files - self.succeeded - self.failed

    def add(self, files: int, rows: int, failed: int) -> None:
        """Counts a mini-batch."""
        self.processed += 1
        self.rows += rows
        self.succeeded += files - failed
        self.failed += failed


class Journal:
    """The open results of a job; a context manager that closes them. `counts` is what is in them.

    `predictions` is None where rows are not kept. What an earlier run has left is continued.
    """

    def __init__(self, predictions: Path | None, failed: Path, journal: Path, counts: Counts) -> None:
        self.counts = counts
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._journal, self._failed = Appended(journal), Appended(failed)
        self._predictions = Appended(predictions) if predictions else None
        self._files = [file for file in (self._journal, self._failed, self._predictions) if file]
        lengths = Lengths()
        for believed, counted in self._believed(journal):
            lengths = believed
            counts.add(*counted)
        self._cut(lengths)
        if not lengths.journal:
            self._journal.append(as_csv([JOURNAL]))
            self._failed.append(as_csv([FAILED]))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def write(
        self, mini_batch: int, files: int, rows: int, text: str, failed: list[tuple[str, str]], *how: Any
    ) -> None:
        """Adds a mini-batch; `how` are its attempts, instance, process and seconds.

        Raises OSError where it cannot be written. Then nothing of it is left in any of the files.
        """
        before = self._lengths()
        try:
            if self._predictions:
                self._predictions.append(as_bytes(text))
            if failed:
                self._failed.append(as_csv((file, mini_batch, reason) for file, reason in failed))
            now = self._lengths()
            line = (mini_batch, files, rows, len(failed), *how, now.predictions, now.failed)
            # No field needs quotes, and csv.writer takes four times as long.
            self._journal.append(as_bytes(",".join(map(str, line)) + "\r\n"))
        except OSError:
            self._cut(before)
            raise
        self.counts.add(files, rows, len(failed))

    def _lengths(self) -> Lengths:
        predictions = self._predictions.length if self._predictions else 0
        return Lengths(self._journal.length, predictions, self._failed.length)

    def _cut(self, lengths: Lengths) -> None:
        self._journal.cut(lengths.journal)
        self._failed.cut(lengths.failed)
        if self._predictions:
            self._predictions.cut(lengths.predictions)

    def _believed(self, journal: Path) -> Iterator[tuple[Lengths, tuple[int, int, int]]]:
        """The lengths after each mini-batch and its files, rows and failed files; up to a line in doubt.

        In doubt is a line that is not whole, out of order (a job that failed writes what it has), or says
        more than the files hold (the machine stopped before all was on the disk).
        """
        on_disk = self._lengths()
        length = len(as_csv([JOURNAL]))
        with journal.open("rb") as lines:
            if lines.read(length) != as_csv([JOURNAL]):
                return
            for number, line in enumerate(lines):
                values = line.removesuffix(b"\r\n").split(b",")
                length += len(line)
                try:
                    found, *counted = map(int, values[:4])
                    lengths = Lengths(length, *map(int, values[len(JOURNAL) - 2 :]))
                except (ValueError, TypeError):
                    return
                fits = lengths.predictions <= on_disk.predictions and lengths.failed <= on_disk.failed
                if not (line.endswith(b"\r\n") and found == number and fits):
                    return
                yield lengths, tuple(counted)


class Lengths(NamedTuple):
    """Of the files of a job, in bytes."""

    journal: int = 0
    predictions: int = 0
    failed: int = 0


class Appended:
    """A file that is written to at its end, at once and not by way of a buffer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self.length = os.fstat(self._file.fileno()).st_size

    def append(self, data: bytes) -> None:
        try:
            while data:  # a disk that is almost full takes a part
                written = self._file.write(data)
                self.length += written
                data = data[written:]
        except OSError as error:
            error.filename = str(self._path)
            raise

    def cut(self, length: int) -> None:
        if length != self.length:
            self._file.truncate(length)
            self.length = length

    def close(self) -> None:
        with suppress(OSError):  # nothing waits to be written
            self._file.close()


def as_csv(lines: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return as_bytes(text.getvalue())


def as_bytes(text: str) -> bytes:
    """UTF-8; names of files that are not UTF-8 are written as the bytes they are."""
    return text.encode("utf-8", "bytes_of_names")


def bytes_of_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """Surrogates in the name of a file stand for bytes; any other is written as \\ud800, and never raises."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("bytes_of_names", bytes_of_names)
