"""What a job has left in its folder so far: progress, rows, failed files, the ends of its logs.

Everything is bounded, however large the job is: a few rows from the start of a file, a few lines from the
end of a log. A file that is not there yet has no rows; one that is being written ends at its last whole line.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from local_workspace.errors import UserError
from local_workspace.jobs import EXECUTION_LOG, Job
from local_workspace.samples import read_labels

MOST_ROWS, MOST_FAILED, MOST_LINES = 48, 20, 40
HEAD, TAIL = 256 << 10, 64 << 10  # bytes that are read of a file
# What the batch executor says when it starts and every few seconds (score.run, score.plain_progress).
STARTED = re.compile(r"files: ([\d,]+), mini-batches: ")
SAID = re.compile(r"([\d,]+) of ([\d,]+) files, ([\d.]+)/s, ([\d,]+) failed")


@dataclass(frozen=True)
class Progress:
    files: int
    done: int  # scored or failed
    failed: int
    rate: float  # images a second


@dataclass(frozen=True)
class Row:
    """A row of predictions: file, class, probability, and its label where the model has labels."""

    file: str
    number: int
    probability: float
    label: str


@dataclass(frozen=True)
class Log:
    name: str
    lines: list[str]
    total: int


def read_progress(job: Job, folder: Path) -> Progress | None:
    """None until the executor has listed the input."""
    if summary := job["summary"]:
        done = summary["succeeded"] + summary["failed"]
        return Progress(summary["files"], done, summary["failed"], summary["images_a_second"])
    log = read_tail(folder / EXECUTION_LOG)
    if said := SAID.findall(log):
        done, files, rate, failed = (float(value.replace(",", "")) for value in said[-1])
        return Progress(int(files), int(done), int(failed), rate)
    started = STARTED.search(log)
    return Progress(int(started[1].replace(",", "")), 0, 0, 0.0) if started else None


def read_rows(job: Job, folder: Path) -> list[list[str]]:
    """The first rows of the predictions. A client chose the file's name: it leads nowhere else."""
    name = os.path.basename(job["deployment"]["settings"]["output_file_name"])
    return list(read_csv(folder / "output" / "score" / name, " ", MOST_ROWS))


def labelled(rows: list[list[str]], labels: list[str]) -> list[Row]:
    """`rows` as file, class, probability; empty where one of them is something else."""
    try:
        found = [Row(file, int(number), float(probability), "") for file, number, probability in rows]
    except ValueError:
        return []
    if not all(row.number >= 0 and 0 <= row.probability <= 1 for row in found):
        return []
    return [Row(row.file, row.number, row.probability, label_of(row.number, labels)) for row in found]


def label_of(number: int, labels: list[str]) -> str:
    return labels[number] if number < len(labels) else f"class {number}"


def read_model_labels(job: Job, folder: Path) -> list[str]:
    """Those of the job's own model, where there are any."""
    model = os.path.basename(job["places"]["model"]["path"].rstrip("/"))
    try:
        return read_labels(folder / "model" / model)
    except (UserError, OSError, UnicodeDecodeError):
        return []


def read_failed(folder: Path) -> list[tuple[str, str]]:
    """The first failed files, by their names in the input, each with the reason."""
    lines = list(read_csv(folder / "output" / "failed.csv", ",", MOST_FAILED + 1))[1:]
    data = f"{folder / 'data'}{os.sep}"
    return [(line[0].removeprefix(data), line[-1].replace(data, "")) for line in lines if line]


def read_csv(path: Path, delimiter: str, most: int) -> Iterator[list[str]]:
    with suppress(OSError, csv.Error):  # not there yet; a line without end
        with path.open("rb") as file:
            content = file.read(HEAD)
        text = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")
        yield from islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), most)


def read_logs(folder: Path) -> list[Log]:
    """The end of what the job said; and what the scoring script raised, where it did."""
    errors = sorted((folder / "output" / "logs" / "user" / "error").rglob("*.txt"))
    paths = [folder / EXECUTION_LOG, *islice((path for path in errors if path.stat().st_size), 1)]
    return [read_log(path, folder) for path in paths if path.is_file()]


def read_log(path: Path, folder: Path) -> Log:
    name = path.relative_to(folder).as_posix().removeprefix("output/")
    return Log(name, read_tail(path).splitlines()[-MOST_LINES:], count_lines(path))


def read_tail(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read(TAIL).decode("utf-8", "replace")


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(TAIL), b""))
