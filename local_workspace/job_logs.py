"""The files that a scoring job leaves in its logs folder, under the names they have in Azure.

(Microsoft's how-to-troubleshoot-batch-endpoints.) The workers' own are in instance.py, and the list of
mini-batches in journal.py.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

LONGEST_LOG = 64 << 20  # bytes, of each log: from there on, only its first half is kept
SHORTENED = b"\n[local workspace: this log grew too long, and what stood here was dropped]\n"


class JobLogs:
    """The open overview of a running job, and its result; a context manager that closes it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._path = logs / f"job_progress_overview.{time.strftime('%Y%m%d%H%M%S')}.txt"
        self._overview = self._path.open("ab", buffering=0)

    def __enter__(self) -> JobLogs:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._overview.close()

    def overview(self, text: str) -> None:
        line = f"{datetime.now().isoformat(' ', 'milliseconds')} {text}\n"
        with suppress(OSError):  # a full disk: where a result cannot be written, the job fails and says so
            self._overview.write(line.encode("utf-8", "backslashreplace"))

    def result(self, summary: dict[str, Any]) -> None:
        """Writes job_result.txt and, where there is a cause, job_error.txt."""
        (self._logs / "job_error.txt").unlink(missing_ok=True)  # of a run that this one resumed
        text = "".join(f"{key}: {'' if value is None else value}\n" for key, value in summary.items())
        (self._logs / "job_result.txt").write_text(text, "utf-8", "backslashreplace")
        if summary["cause"]:
            (self._logs / "job_error.txt").write_text(summary["cause"] + "\n", "utf-8", "backslashreplace")

    def shorten(self) -> None:
        shorten(self._path)


def shorten(log: Path) -> None:
    """Drops the second half of a log that has grown too long. Whoever writes to it does so at its end."""
    with suppress(OSError):  # not there yet; or a full disk, of which the journal will tell
        if log.stat().st_size > LONGEST_LOG:
            os.truncate(log, LONGEST_LOG // 2)
            with log.open("ab") as end:
                end.write(SHORTENED)
