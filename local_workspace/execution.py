"""The batch executor of a job: `python -m local_workspace score` as a process, and what it said."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from local_workspace.files import open_regular, read_text
from local_workspace.instance import Guard

EXECUTION_LOG = "logs/azureml/executionlogs.txt"  # the file that `az ml job stream` prints for a parent job
STOP_SECONDS = 10  # between SIGINT, SIGTERM and SIGKILL
# The executor starts once it cannot be left over; a server that was killed meanwhile does not say so.
WHEN_TOLD = ("/bin/sh", "-c", 'read -r start && exec "$@" < /dev/null', "sh")

Summary = dict[str, Any]


def start(
    job: dict[str, Any], folder: Path, environment: dict[str, str], guard: Guard
) -> subprocess.Popen[bytes]:
    """Run the executor; what it says is the execution log. It holds `alive` locked while it lives."""
    model = job["places"]["model"]["path"].rstrip("/").rpartition("/")[2]
    command = [sys.executable, "-m", "local_workspace", "score", str(folder / "deployment.yml")]
    command += ["--data", str(folder / "data"), "--model", str(folder / "model" / model)]
    command += ["--output", str(folder / "output")]
    with (
        open_regular(folder / EXECUTION_LOG, "ab", links=False) as log,
        open_regular(folder / "alive", "w", links=False) as alive,
    ):
        fcntl.flock(alive, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [*WHEN_TOLD, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(alive.fileno(),),
            start_new_session=True,
        )
        print(process.pid, file=alive, flush=True)
    guard.note(process.pid)
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(b"start\n")
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, wait, SIGKILL: to the executor, then to its whole group of workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def kill_orphan(alive: Path) -> None:
    """End the executor of a server that was killed. The lock tells that the process id is still its own."""
    with suppress(OSError), open_regular(alive, "r", errors="replace", links=False) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            process_id = file.read().strip()
            if process_id.isdecimal():
                os.killpg(int(process_id), signal.SIGKILL)


def reason(summary: Summary | None, folder: Path, exit_code: int) -> str:
    """Why the job failed, in one line: the executor's own word, or the last line of its log."""
    if cause := (summary or {}).get("cause"):
        return str(cause)
    lines = read_text(folder / EXECUTION_LOG).splitlines() or ["its log cannot be read"]
    said = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return f"{said[-1].removeprefix('error:').strip()} (the executor ended with exit code {exit_code})"


def read_summary(folder: Path) -> Summary | None:
    """What the executor wrote; None where a scoring script has put something else there."""
    try:
        summary = json.loads(read_text(folder / "output" / "summary.json"))
    except ValueError:
        return None
    return summary if isinstance(summary, dict) else None
