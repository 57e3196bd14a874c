"""How far a job is: a bar or lines for a person, and progress.json for a program."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from local_workspace.console import say
from local_workspace.journal import Counts

PLAIN = 5  # seconds between two lines of progress where there is no terminal
QUIET = 60  # seconds without progress until that is said
FILE_INTERVAL = 0.25  # seconds between two versions of progress.json


class ProgressFile:
    """progress.json: replaced whole at the start, at the end and a few times a second in between.

    It is news, and no result: where it cannot be written, the job goes on without it.
    """

    def __init__(self, output: Path, workers: int, counts: Counts) -> None:
        self._path, self._workers = output / "progress.json", workers
        self._started, self._next = now(), 0.0
        self.update(counts)

    def update(self, counts: Counts) -> None:
        moment = time.monotonic()
        if moment >= self._next:
            self._next = moment + FILE_INTERVAL
            self._write(counts, ended=False)

    def end(self, counts: Counts) -> None:
        self._write(counts, ended=True)

    def _write(self, counts: Counts, ended: bool) -> None:
        moment = now()
        progress = {
            "files": counts.files,
            "mini_batches": counts.mini_batches,
            "workers": self._workers,
            "processed_mini_batches": counts.processed,
            "scored": counts.succeeded,
            "failed": counts.failed,
            "rows": counts.rows,
            "started": self._started,
            "updated": moment,
            "ended": moment if ended else None,
        }
        part = self._path.with_name(".progress.json.part")
        try:
            part.write_text(json.dumps(progress) + "\n", "utf-8")
            os.replace(part, self._path)
        except OSError:
            with suppress(OSError):
                part.unlink()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def progress(files: int, resumed: int) -> Iterator[Callable[[Counts], None]]:
    """A function that shows the counts: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield plain_progress(resumed)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=files, rate="")
        rate = files_a_second(resumed)

        def show(counts: Counts) -> None:
            done = counts.succeeded + counts.failed
            bar.update(shown, completed=done, rate=f"{rate(done):.0f}/s, {counts.failed} failed")

        yield show


def plain_progress(resumed: int = 0) -> Callable[[Counts], None]:
    last, said, rate = time.monotonic(), resumed, files_a_second(resumed)

    def show(counts: Counts) -> None:
        nonlocal last, said
        now, done = time.monotonic(), counts.succeeded + counts.failed
        speed = rate(done)
        if now - last >= (PLAIN if done > said else QUIET):
            say(f"{done:,} of {counts.files:,} files, {speed:.1f}/s, {counts.failed} failed")
            last, said = now, done

    return show


def files_a_second(resumed: int) -> Callable[[int], float]:
    """The speed at which files are done after those of a `resumed` run, from the last moment at which none
    was: init() is not counted.
    """
    begin = time.monotonic()

    def rate(done: int) -> float:
        nonlocal begin
        now = time.monotonic()
        begin = begin if done > resumed else now
        return (done - resumed) / max(now - begin, 1e-3)

    return rate
