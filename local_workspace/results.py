"""What a job has left in its folder so far: progress, rows, failed files, the ends of its logs.

Everything is bounded, however large the job is: a few rows from the start of a file, a few lines from the
end of a log. A file that is not there yet has no rows; one that is being written ends at its last whole line.
Nothing here raises for what a client, a person or a scoring script has put into a job's record or folder.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from local_workspace import predictions
from local_workspace.errors import UserError
from local_workspace.files import open_regular
from local_workspace.jobs import EXECUTION_LOG, TERMINAL, Job
from local_workspace.labels import Labels, kept_labels
from local_workspace.predictions import Row

MOST_ROWS, MOST_FAILED, MOST_LINES = 48, 20, 40
TAIL = 64 << 10  # bytes that are read of a log
PROGRESS = "progress.json"  # which the executor writes into its output folder as it goes
MAX_PROGRESS = 64 << 10  # bytes


@dataclass(frozen=True)
class Progress:
    files: int
    done: int  # scored or failed
    failed: int
    rows: int
    rate: float  # images a second


@dataclass(frozen=True)
class Log:
    name: str
    lines: list[str]
    total: int


def read_progress(job: Job, folder: Path) -> Progress | None:
    """None until the executor has listed the input."""
    return progress_of(job["summary"]) or progress_of(read_json(folder / "output" / PROGRESS))


def progress_of(told: Any) -> Progress | None:
    """What the executor told in summary.json, or before in progress.json; None where it told nothing."""
    try:
        scored = told["succeeded"] if "succeeded" in told else told["scored"]
        files, failed, rows = told["files"], told["failed"], told["rows"]
        if any(type(number) is not int or number < 0 for number in (files, scored, failed, rows)):
            return None
        rate = told["images_a_second"] if "images_a_second" in told else scored / seconds_of(told)
        return Progress(files, scored + failed, failed, rows, float(rate))
    except (TypeError, LookupError, AttributeError, ValueError, OverflowError):
        return None


def seconds_of(told: dict[str, Any]) -> float:
    """From the start of a job that runs to its last word, init() included."""
    started, updated = (
        datetime.fromisoformat(told[key].replace("Z", "+00:00")) for key in ("started", "updated")
    )
    return max(1.0, (updated - started).total_seconds())


def read_json(path: Path) -> Any:
    with suppress(OSError, ValueError, RecursionError), open_regular(path) as file:
        return json.loads(file.read(MAX_PROGRESS))
    return None


def read_rows(job: Job, folder: Path) -> list[Row]:
    """The first rows of the predictions; none where they are something else."""
    try:
        path = find_predictions(job, folder)
        if path.is_dir() and job["status"] not in TERMINAL:
            return []  # which are the first ones, changes with each Parquet file
        rows = predictions.read_rows(path, MOST_ROWS)
    except UserError:
        return []
    return rows if all(0 <= row.probability <= 1 for row in rows) else []


def read_cells(job: Job, folder: Path) -> list[list[str]]:
    """The first lines of predictions in any other form."""
    lines: list[list[str]] = []
    with suppress(UserError):
        # Without a scoring script it is the deployment of an MLflow model, whose rows have commas.
        separator = " " if "code_configuration" in job["deployment"] else ","
        lines.extend(predictions.read_cells(find_predictions(job, folder), separator, MOST_ROWS))
    return lines


def find_predictions(job: Job, folder: Path) -> Path:
    """A client chose the file's name: it leads nowhere else."""
    name = job["deployment"]["settings"].get("output_file_name")
    plain = os.path.basename(name) if isinstance(name, str) else None
    return predictions.find_predictions(folder / "output" / "score", plain)


def read_labels(folder: Path, rows: list[Row]) -> tuple[Labels, str]:
    """The labels of the job's own model, and why they are not shown where they cannot be.

    That they fit is seen in `rows`, the first ones.
    """
    try:
        labels = kept_labels(folder / "output")
        problem = labels.misfit(row.classes[0] for row in rows)
    except UserError as error:
        problem = error.message
    return (Labels(), problem.replace(f"{folder}{os.sep}", "")) if problem else (labels, "")


def read_failed(folder: Path) -> list[tuple[str, str]]:
    """The first failed files, by their names in the input, each with the reason."""
    lines: list[list[str]] = []
    with suppress(UserError):
        lines.extend(predictions.read_cells(folder / "output" / "failed.csv", ",", MOST_FAILED + 1))
    data = f"{folder / 'data'}{os.sep}"
    return [(line[0].removeprefix(data), line[-1].replace(data, "")) for line in lines[1:]]


def read_logs(folder: Path) -> list[Log]:
    """The end of what the job said; and what the scoring script raised, where it did."""
    errors = sorted((folder / "output" / "logs" / "user" / "error").rglob("*.txt"))
    raised = next((log for path in errors if (log := read_log(path, folder)) and log.lines), None)
    return [log for log in (read_log(folder / EXECUTION_LOG, folder), raised) if log]


def read_log(path: Path, folder: Path) -> Log | None:
    name = path.relative_to(folder).as_posix().removeprefix("output/")
    with suppress(OSError), open_regular(path) as file:
        total = sum(block.count(b"\n") for block in iter(lambda: file.read(TAIL), b""))
        file.seek(max(0, file.tell() - TAIL))
        return Log(name, file.read(TAIL).decode("utf-8", "replace").splitlines()[-MOST_LINES:], total)
    return None
