"""The files that a scoring job leaves in its logs folder, under the names they have in Azure.

(Microsoft's how-to-troubleshoot-batch-endpoints.) The workers' own are in instance.py.
"""

from __future__ import annotations

import codecs
import csv
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

PROCESSED = ("mini_batch", "files", "rows", "failed_files", "attempts", "instance", "process", "seconds")
FAILED = ("file", "mini_batch", "reason")


class JobLogs:
    """The open files of a running job; a context manager that closes them."""

    def __init__(self, logs: Path, failed_files: Path) -> None:
        report = logs / "sys" / "job_report"
        report.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._overview = open_text(logs / f"job_progress_overview.{time.strftime('%Y%m%d%H%M%S')}.txt")
        self._processed_file = open_text(report / "processed_mini-batches.csv")
        self._failed_file = open_text(failed_files)
        self._processed, self._failed = csv.writer(self._processed_file), csv.writer(self._failed_file)
        self._processed.writerow(PROCESSED)
        self._failed.writerow(FAILED)

    def __enter__(self) -> JobLogs:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in (self._overview, self._processed_file, self._failed_file):
            file.close()

    def overview(self, text: str) -> None:
        self._overview.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._overview.flush()

    def processed(self, *values: Any) -> None:
        self._processed.writerow(values)

    def failed(self, mini_batch: int, failed: list[tuple[str, str]]) -> None:
        self._failed.writerows((file, mini_batch, reason) for file, reason in failed)

    def result(self, text: str, cause: str) -> None:
        """Writes job_result.txt and, where there is a cause, job_error.txt."""
        (self._logs / "job_result.txt").write_text(text + "\n", "utf-8", "backslashreplace")
        if cause:
            (self._logs / "job_error.txt").write_text(cause + "\n", "utf-8", "backslashreplace")


def open_text(path: Path) -> TextIO:
    """`path` for writing; names of files that are not UTF-8 are written as the bytes they are."""
    return path.open("w", encoding="utf-8", errors="bytes_of_names", newline="")


def bytes_of_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """Surrogates in the name of a file stand for bytes; any other is written as \\ud800, and never raises."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("bytes_of_names", bytes_of_names)
