"""The executor's side of its workers: their processes, pipes, logs and environment.

An instance stands for a node of Azure's compute cluster. Here it is a name in the logs, a number of
workers and a count of failures of init().
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_workspace.deployment import Deployment
from local_workspace.listing import MiniBatch

WORKER = Path(__file__).with_name("worker.py")
READ_SIZE = 1 << 20  # bytes
LONGEST_LOG = 64 << 20  # bytes, of each log of a worker: from there on, only its first half is kept
SHORTENED = b"\n[local workspace: this log grew too long, and what stood here was dropped]\n"
# A process that outlives the executor, even one that is killed, and then ends its workers. They could not do
# so themselves: a scoring script may hold the interpreter's lock. Each line is the group of a worker that
# has started or, the second time, ended.
GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    groups ^= {int(line)}
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""
# What a worker gets of the caller's environment. All else comes from the deployment, as in Azure.
INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
)


@dataclass(frozen=True)
class Job:
    """What a scoring job works on, and where its traces go."""

    deployment: Deployment
    run_id: str
    model_dir: Path  # becomes AZUREML_MODEL_DIR: the parent of the registered folder or file
    listing: Path
    output: Path  # the folder of the output named score
    logs: Path
    init_timeout: float  # seconds
    profile: bool = False


@dataclass
class Instance:
    name: str
    failed_inits: int = 0
    started: int = 0  # processes so far; a new one gets a log of its own


class Guard:
    """The process that ends the workers when this one has been killed; close() when there are none left."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the executor's
        )

    def note(self, group: int) -> None:
        with suppress(BrokenPipeError):  # someone has killed it; the job can do without
            self._process.stdin.write(b"%d\n" % group)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Worker:
    """A running worker process. `mini_batch` is what it works on; None while it starts or waits."""

    def __init__(self, job: Job, instance: Instance, slot: int, guard: Guard) -> None:
        self.instance, self.slot, self._guard = instance, slot, guard
        self.name = f"process{instance.started:03d}"
        instance.started += 1
        self.error_log = log_file(job.logs, "error", self)
        self.ready = False
        self.mini_batch: MiniBatch | None = None
        self.since = time.monotonic()
        self.deadline = self.since + job.init_timeout
        self._received = bytearray()
        self._shortened = [
            log_file(job.logs, kind, self) for kind in ("stdout", "stderr", "entry_script_log")
        ]
        self._start(job)

    def _start(self, job: Job) -> None:
        orders, self._orders = os.pipe()
        self.answers, answers = os.pipe()
        # Always at the end of the file, also once it has been shortened.
        with self._shortened[0].open("ab") as stdout, self._shortened[1].open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), *worker_arguments(job, self, orders, answers)],
                cwd=job.deployment.code,
                env=environment(job, self.slot),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(orders, answers),
                start_new_session=True,  # a Ctrl-C is the executor's; and one signal ends all it started
            )
        os.close(orders)
        os.close(answers)
        cores = share_of_cores(job, self.slot)
        if cores and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # not allowed: then the system moves it between the cores
                os.sched_setaffinity(self.process.pid, cores)
        self._guard.note(self.process.pid)
        self._send("start\n")  # now that it cannot be left over

    def order(self, mini_batch: MiniBatch, timeout: float) -> None:
        self.mini_batch = mini_batch
        self.since = time.monotonic()
        self.deadline = self.since + timeout
        self._send(f"{mini_batch.offset} {mini_batch.files}\n")

    def _send(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has died: the executor sees that at the other pipe
            os.write(self._orders, line.encode())  # shorter than a pipe's buffer: never blocks

    def receive(self) -> dict[str, Any] | None:
        """The worker's answer once it is whole, else None.

        Raises EOFError when the worker is gone, and when it says what is no answer to its order: its
        scoring script has written to the pipe, so it is of no use any more.
        """
        data = os.read(self.answers, READ_SIZE)
        if not data:
            raise EOFError
        self._received += data
        if not data.endswith(b"\n"):
            return None
        try:
            answer = json.loads(self._received.decode())
            order = answer.pop("order")
        except (ValueError, TypeError, AttributeError, KeyError):
            raise EOFError from None
        finally:
            self._received.clear()
        waits = self.ready and not self.mini_batch
        if waits or order != (self.mini_batch and self.mini_batch.offset):
            raise EOFError
        return answer

    def dismiss(self) -> None:
        """Asks the worker to call shutdown() and to end."""
        self._send("0 0\n")

    def end(self, wait: float = 0) -> str:
        """Ends the process, and all that it started, after at most `wait` seconds; says how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self._guard.note(self.process.pid)
        self.shorten_logs()
        os.close(self._orders)
        os.close(self.answers)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def shorten_logs(self) -> None:
        """Keeps a script that prints without end from filling the disk."""
        for path in self._shortened:
            with suppress(OSError):  # not there yet; or a full disk, of which the journal will tell
                if path.stat().st_size > LONGEST_LOG:
                    os.truncate(path, LONGEST_LOG // 2)
                    with path.open("ab") as log:
                        log.write(SHORTENED)

    def write_error(self, text: str) -> None:
        with self.error_log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(text.rstrip() + "\n")


def log_file(logs: Path, kind: str, worker: Worker) -> Path:
    """The log of a worker, under the name that Azure gives it (see job_logs.py)."""
    ending = "log.txt" if kind == "entry_script_log" else f"{kind}.txt"
    path = logs / "user" / kind / worker.instance.name / f"{worker.name}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def worker_arguments(job: Job, worker: Worker, orders: int, answers: int) -> list[str]:
    values = {
        "scoring-script": job.deployment.code / job.deployment.scoring_script,
        "listing": job.listing,
        "orders": orders,
        "answers": answers,
        "output-action": job.deployment.output_action,
        "logging-level": job.deployment.logging_level,
        "log": log_file(job.logs, "entry_script_log", worker),
    }
    if job.profile:
        values["profile"] = log_file(job.logs, "profile", worker)
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def environment(job: Job, slot: int) -> dict[str, str]:
    """The environment of the worker number `slot`: what Azure sets, and its share of the processors."""
    threads = str(len(share_of_cores(job, slot)) or 1)
    gpus = gpu_indices()
    return {
        **{name: os.environ[name] for name in INHERITED if name in os.environ},
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        # Workers that each use every core slow each other down.
        "OMP_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": gpus[slot] if slot < len(gpus) else "",
        "AZUREML_RUN_ID": job.run_id,
        "AZUREML_MODEL_DIR": str(job.model_dir),
        "AZUREML_BI_OUTPUT_PATH": str(job.output),
        **job.deployment.environment_variables,
    }


def share_of_cores(job: Job, slot: int) -> list[int]:
    """The cores of the worker number `slot`, as a node's are its own; none where there are too few."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    each = len(cores) // job.deployment.workers
    return cores[slot * each : (slot + 1) * each]


def gpu_indices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [index for index in visible.split(",") if index not in ("", "-1")]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
