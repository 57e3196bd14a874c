"""The files that a scoring job leaves in its logs folder, under the names they have in Azure.

(Microsoft's how-to-troubleshoot-batch-endpoints.) The workers' own are in instance.py, and the list of
mini-batches in journal.py.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType


class JobLogs:
    """The open overview of a running job, and its result; a context manager that closes it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        name = f"job_progress_overview.{time.strftime('%Y%m%d%H%M%S')}.txt"
        self._overview = (logs / name).open("ab", buffering=0)

    def __enter__(self) -> JobLogs:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._overview.close()

    def overview(self, text: str) -> None:
        line = f"{datetime.now().isoformat(' ', 'milliseconds')} {text}\n"
        with suppress(OSError):  # a full disk: where a result cannot be written, the job fails and says so
            self._overview.write(line.encode("utf-8", "backslashreplace"))

    def result(self, text: str, cause: str) -> None:
        """Writes job_result.txt and, where there is a cause, job_error.txt."""
        (self._logs / "job_error.txt").unlink(missing_ok=True)  # of a run that this one resumed
        (self._logs / "job_result.txt").write_text(text + "\n", "utf-8", "backslashreplace")
        if cause:
            (self._logs / "job_error.txt").write_text(cause + "\n", "utf-8", "backslashreplace")
