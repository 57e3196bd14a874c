"""How a contender is measured: a whole deployment through the executor, or a process that is asked."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "peers"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
RATE, MEMORY, SECONDS = "images a second", "MB", "seconds"

Predictions = dict[str, tuple[int, float]]  # file: class, probability


class LeftOut(Exception):
    """The contender cannot be measured; the message is the reason, in one line."""


@dataclass
class Contender:
    """`measure` returns the figures of one round, by RATE, MEMORY or SECONDS."""

    name: str
    model: str  # "" where no model matters
    settings: str
    measure: Callable[[Contender], dict[str, float]]
    packages: tuple[str, ...] = ()  # that it needs beside TensorFlow
    prepare: Callable[[], None] = lambda: None  # before the first round
    end: Callable[[], None] = lambda: None
    predictions: Predictions = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    left_out: str = ""

    def values(self, quantity: str) -> list[float]:
        return [figures[quantity] for figures in self.rounds if quantity in figures]


# --- whole deployments


def deployment(yaml: str, model: Path, data: Path, output: Path, *settings: str) -> Callable:
    """Runs `python -m local_workspace score`, as a user does, with the deployment as it is but `settings`."""
    command = [sys.executable, "-m", "local_workspace", "score", yaml, "--data", data, "--model", model]
    command += ["--output", output, "--overwrite"]
    command += [part for setting in settings for part in ("--set", setting)]

    def measure(contender: Contender) -> dict[str, float]:
        begin = time.perf_counter()
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise LeftOut(f"score ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        summary = json.loads((output / "summary.json").read_text())
        if summary["not_scored"] or summary["failed"]:
            raise LeftOut(f"{summary['failed']} of {summary['files']} files failed")
        contender.predictions = read_predictions(output / "score" / "predictions.csv")
        logs = output / "logs"
        processed = logs / "sys" / "job_report" / "processed_mini-batches.csv"
        rate = steady_rate(processed, ready_times(logs))
        return {RATE: rate, MEMORY: summary["peak_memory_of_a_worker_mb"], SECONDS: seconds}

    return measure


def ready_times(logs: Path) -> dict[str, float]:
    """When each worker had done its init(), in seconds since any moment."""
    (overview,) = logs.glob("job_progress_overview.*")
    lines = [line for line in overview.read_text().splitlines() if line.endswith(": ready")]
    return {
        " ".join(line.split()[2:4]).rstrip(":"): datetime.fromisoformat(line[:23]).timestamp()
        for line in lines
    }


def steady_rate(processed: Path, ready: dict[str, float]) -> float:
    """Images a second while all workers were scoring: neither while one still started, nor had ended.

    The first mini-batch of a worker is its warm-up, as the peers have theirs. A worker gets its next
    mini-batch as soon as it has answered, so their times follow one another.
    """
    times = defaultdict(list)
    with processed.open(newline="") as lines:
        for row in csv.DictReader(lines):
            times[f"{row['instance']} {row['process']}"].append((int(row["files"]), float(row["seconds"])))
    start = max(ready[worker] + times[worker][0][1] * (len(times[worker]) > 1) for worker in times)
    end = min(ready[worker] + sum(seconds for _, seconds in times[worker]) for worker in times)
    images = 0.0
    for worker, mini_batches in times.items():
        moment = ready[worker]
        for files, seconds in mini_batches:
            inside = min(end, moment + seconds) - max(start, moment)
            images += files * max(0.0, inside) / seconds if seconds else 0
            moment += seconds
    return images / max(end - start, 1e-9)


def read_predictions(path: Path) -> Predictions:
    """Empty where the rows are not file, class and probability."""
    with path.open(newline="") as lines:
        rows = csv.reader(lines, delimiter=" ")
        return {row[0]: (int(row[1]), float(row[2])) for row in rows if len(row) == 3}


# --- processes that are asked


def process(command: list[str | Path], request: object, warm_up: object, **environment: str) -> tuple:
    """Starts a process at its first round and keeps it. Returns how to measure it, and how to end it.

    It reads one line of JSON, works, and answers with one; `warm_up`, where there is one, is asked first
    and does not count.
    """
    running: list[subprocess.Popen[str]] = []

    def measure(contender: Contender) -> dict[str, float]:
        if not running:
            running.append(start(command, environment))
            if warm_up is not None:
                ask(running[0], warm_up)
        figures = ask(running[0], request)
        if "rows" in figures:
            names = [os.path.basename(path) for path in request]
            contender.predictions = {name: (row[0], row[1]) for name, row in zip(names, figures["rows"])}
        named = {"rate": RATE, "memory": MEMORY, "seconds": SECONDS}
        return {quantity: figures[key] for key, quantity in named.items() if key in figures}

    def end() -> None:
        while running:
            one = running.pop()
            one.stdin.close()
            try:
                one.wait(60)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
            one.stdout.close()

    return measure, end


def start(command: list[str | Path], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr if os.environ.get("BENCHMARKS_DEBUG") else subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=os.environ | QUIET | environment,
    )


def ask(running: subprocess.Popen[str], request: object) -> dict:
    try:
        running.stdin.write(json.dumps(request) + "\n")
        running.stdin.flush()
    except BrokenPipeError:
        raise LeftOut("its process has ended") from None
    line = running.stdout.readline()
    if not line:
        raise LeftOut(f"its process ended with exit code {running.wait()}")
    return json.loads(line)


def command(*parts: str | Path) -> Callable:
    """Times a command from its start to its end."""

    def measure(contender: Contender) -> dict[str, float]:
        begin = time.perf_counter()
        done = subprocess.run(
            [str(part) for part in parts], cwd=ROOT, env=os.environ | QUIET, capture_output=True
        )
        if done.returncode:
            raise LeftOut(f"exit code {done.returncode}: {done.stderr.decode().strip()[-200:]}")
        return {SECONDS: time.perf_counter() - begin}

    return measure


def no_op(data: Path, files: int, output: Path) -> Callable:
    """The executor with a scoring script that does nothing; MEMORY is the executor's own peak."""
    command = [sys.executable, "-m", "local_workspace", "score", "deployment-by-batch.yml"]
    command += ["--data", str(data), "--model", "benchmarks/no_op", "--output", str(output), "--overwrite"]
    command += ["--set", "code_configuration.code=benchmarks/no_op", "--set", "settings.mini_batch_size=10"]
    command += ["--set", "resources.instance_count=2"]

    def measure(contender: Contender) -> dict[str, float]:
        begin = time.perf_counter()
        job = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0.0
        while job.poll() is None:
            peak = max(peak, peak_memory(job.pid))
            time.sleep(0.02)
        summary = json.loads((output / "summary.json").read_text())
        if job.returncode or summary["rows"] != files:
            raise LeftOut(f"exit code {job.returncode}, {summary['rows']} rows")
        rate = files / max(0.01, summary["seconds_scoring"])  # which has two digits
        figures = {RATE: rate, SECONDS: time.perf_counter() - begin}
        return figures | ({MEMORY: peak} if peak else {})

    return measure


def peak_memory(pid: int) -> float:
    """MB of the process so far; 0 where the system does not tell. (A child's rusage counts its parent.)"""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
