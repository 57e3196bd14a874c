"""summary.json: the figures of a job that has ended, and what ended it."""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_workspace.console import say
from local_workspace.errors import UserError
from local_workspace.executor import Executor
from local_workspace.journal import Counts
from local_workspace.reasons import cut
from local_workspace.resume import SUMMARY, only_run, write_json

MEASURED = (
    *("not_scored", "seconds", "seconds_scoring", "images_a_second", "images_a_second_a_worker"),
    "peak_memory_of_a_worker_mb",
)


def summarise(
    status: str, cause: str | None, counts: Counts, executor: Executor, seconds: float, workers: int
) -> dict[str, Any]:
    """The figures of a job that has ended, and its cause, where it did not complete.

    `seconds_scoring` runs from the end of the first init() on. A resumed run counts all files, and its
    seconds and speed are its own.
    """
    scoring = max(0.0, executor.last_finished - executor.first_ready)
    rate = (counts.succeeded - executor.resumed) / scoring if scoring else 0.0
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "status": status,
        "cause": cause,
        **asdict(counts),
        "not_scored": counts.not_scored,
        "seconds": round(seconds, 2),
        "seconds_scoring": round(scoring, 2),
        "images_a_second": round(rate, 1),
        "images_a_second_a_worker": round(rate / workers, 1),
        "peak_memory_of_a_worker_mb": round(kilobytes / (1 << 20 if sys.platform == "darwin" else 1 << 10)),
    }


def tell_refusal(output: Path, cause: str) -> None:
    """Keeps why a job could not begin, where its `output` folder is there and holds no other summary.

    Such a summary counts no file. Where another run works in the folder, it is left alone.
    """
    if not os.path.isdir(output):
        return
    refusal = {"status": "Failed", "cause": cut(cause), **asdict(Counts(0, 0)), **dict.fromkeys(MEASURED, 0)}
    with suppress(UserError, OSError), only_run(output):
        if not (output / SUMMARY).exists() or is_refusal(output):
            write_json(output / SUMMARY, refusal)


def is_refusal(output: Path) -> bool:
    try:
        return json.loads((output / SUMMARY).read_text("utf-8"))["files"] == 0
    except (OSError, ValueError, TypeError, KeyError):
        return False


def print_summary(summary: dict[str, Any], output: Path) -> None:
    files, succeeded, failed, left = (summary[key] for key in ("files", "succeeded", "failed", "not_scored"))
    say(
        f"{summary['status']}: {files:,} files = {succeeded:,} scored + {failed:,} failed"
        + (f" + {left:,} not scored" if left else "")
        + f"; {summary['rows']:,} rows\n"
        f"{summary['seconds']} s, of which {summary['seconds_scoring']} s scoring: "
        f"{summary['images_a_second']} images a second, {summary['images_a_second_a_worker']} a worker; "
        f"a worker's peak memory {summary['peak_memory_of_a_worker_mb']:,} MB"
    )
    if failed:
        say(f"failed files and why: {output / 'failed.csv'}")
    if left:
        say("--resume goes on where this run stopped")
    if summary["status"] == "Failed":
        say(f"\nerror: the job failed: {summary['cause']}\n\nhint: the logs are in {output / 'logs'}")
