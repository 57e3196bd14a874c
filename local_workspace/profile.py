"""Prints what the workers of a job have measured (profiler.py)."""

from __future__ import annotations

import json
import linecache
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

STAGES = ("wait", "read", "decode", "resize", "model", "rows", "other")
LINES = 6  # of the scoring script


def print_profile(logs: Path, code: Path) -> None:
    """To stderr: shares of the time since the first order, the workers of a job taken together."""
    profiles = [json.loads(path.read_text("utf-8")) for path in sorted(logs.rglob("*.profile.txt"))]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    window = sum(profile["window"] for profile in profiles)
    if not window:
        console.print("no profile: no worker came to its end, or run() took no time")
        return
    seconds, queue, run, files = (
        sum(profile[key] for profile in profiles) for key in ("seconds", "queue", "run", "files")
    )
    console.print(
        f"\nwhere the time went, {seconds:.1f} s of {len(profiles)} workers together: "
        f"run() {share(run, seconds)}, {1000 * run / max(1, files):.1f} ms a file; "
        f"queue, waiting for an order, {share(queue, seconds)}; "
        f"rows, to text and to the executor, {share(seconds - queue - run, seconds)}"
    )
    script, threads, operations = (add(profiles, key) for key in ("script", "threads", "operations"))
    del threads["wait"]  # they have nothing to do
    table = Table("stage", "run() itself", "its other threads", "TensorFlow's threads", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in STAGES:
        shares = [share(part[stage], window) if part[stage] else "" for part in (script, threads, operations)]
        if any(shares):
            table.add_row(stage, *shares)
    console.print(f"inside run(), {window:.1f} s looked at; threads work at the same time:", table)
    console.print("the lines that run() itself is in:")
    for line, part in add(profiles, "lines").most_common(LINES):
        file, _, number = line.rpartition(":")
        text = linecache.getline(str(code / file), int(number)).strip() if file else "(none of the script)"
        console.print(f"{share(part, window):>6}  {line}  {text}")


def add(profiles: list[dict], key: str) -> Counter[str]:
    return sum((Counter(profile[key]) for profile in profiles), Counter())


def share(seconds: float, whole: float) -> str:
    return f"{100 * seconds / whole:.0f} %"
