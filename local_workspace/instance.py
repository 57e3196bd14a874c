"""The executor's side of its workers: their processes, pipes, logs and environment.

An instance stands for a node of Azure's compute cluster. Here it is a name in the logs, a number of
workers and a count of failures of init().
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local_workspace.answer import Answers, NoAnswerError, Raised, Rows
from local_workspace.deployment import Deployment
from local_workspace.guard import Guard
from local_workspace.job_logs import shorten
from local_workspace.listing import MiniBatch
from local_workspace.profile import Profile, let_itself_be_traced
from local_workspace.reasons import cut
from local_workspace.watch import Watch
from local_workspace.worker import INIT, LONGEST_TRACEBACK, SLATE_SIZE

WORKER = Path(__file__).with_name("worker.py")
SLATE, NOWHERE = "=2q", -1  # what stands on the slate (worker.py), and in place of an offset
REPORT = 600  # seconds in which a worker has to write out and explain what run() returned
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
    profile: Profile | None = None


@dataclass
class Instance:
    name: str
    failed_inits: int = 0
    started: int = 0  # processes so far; a new one gets a log of its own


class Worker:
    """A running worker process. `mini_batch` is what it works on; None while it starts or waits."""

    def __init__(self, job: Job, instance: Instance, slot: int, guard: Guard, watch: Watch) -> None:
        self.instance, self.slot, self._guard, self._watch = instance, slot, guard, watch
        self.name = f"process{instance.started:03d}"
        instance.started += 1
        self.ready = False
        self.mini_batch: MiniBatch | None = None
        self.since = time.monotonic()
        self._has_answered = False
        self._append = job.deployment.output_action == "append_row"
        self._limit(job.init_timeout)
        self.error_log, *printed = (
            log_file(job.logs, kind, self) for kind in ("error", "stdout", "stderr", "entry_script_log")
        )
        self._logs = [self.error_log, *printed]
        self._start(job, *printed[:2])

    def _start(self, job: Job, stdout_log: Path, stderr_log: Path) -> None:
        orders, self._orders = os.pipe()
        self.pipe, answers = os.pipe()
        self._answers = Answers(self.pipe)
        # Always at the end of the file, also once it has been shortened.
        with stdout_log.open("ab") as stdout, stderr_log.open("ab") as stderr, new_slate() as slate:
            self._noted = mmap.mmap(slate.fileno(), SLATE_SIZE)
            descriptors = {"orders": orders, "answers": answers, "slate": slate.fileno()}
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), *worker_arguments(job, self, descriptors)],
                cwd=job.deployment.code,
                env=environment(job, self.slot),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(descriptors.values()),
                start_new_session=True,  # a Ctrl-C is the executor's; and one signal ends all it started
                preexec_fn=let_itself_be_traced() if job.profile else None,
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
        struct.pack_into(SLATE, self._noted, 0, NOWHERE, NOWHERE)
        self._limit(timeout)
        self._send(f"{mini_batch.offset} {mini_batch.files}\n")

    def _send(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has died: the executor sees that at the other pipe
            os.write(self._orders, line.encode())  # shorter than a pipe's buffer: never blocks

    def receive(self) -> Rows | Raised | None:
        """The worker's answer once it is whole, else None.

        Raises EOFError when the worker has closed the pipe, and NoAnswerError when what comes is no answer
        to its order: its scoring script has written to the pipe, so it is of no use any more.
        """
        answer = self._answers.receive()
        if not answer:
            return None
        waits = self.ready and not self.mini_batch
        if waits or answer.order != (self.mini_batch.offset if self.mini_batch else INIT):
            raise NoAnswerError
        said = answer.said
        if isinstance(said, Rows) and self.mini_batch:
            rowless = self._append and not said.text and said.rows
            if rowless or len(said.failed) > self.mini_batch.files:
                raise NoAnswerError
        self._has_answered |= self.mini_batch is not None
        return said

    def has_more(self) -> bool:
        poll = select.poll()  # select() takes no number of a file from 1024 on
        poll.register(self.pipe, select.POLLIN)
        return bool(poll.poll(0))

    # --- where it is, and for how long it may be there

    @property
    def doing(self) -> str:
        if not self.ready:
            return "init()"
        if not self.mini_batch:
            return "the wait for a mini-batch"
        begun, ended = struct.unpack(SLATE, self._noted[:])
        if ended == self.mini_batch.offset:
            return "the writing of its rows"
        return "run()" if begun == self.mini_batch.offset else "the wait for its mini-batch"

    def _limit(self, seconds: float) -> None:
        self.limit, self._limited, self.deadline = seconds, self.doing, self._watch.seconds + seconds

    def is_overdue(self, timeout: float) -> bool:
        """Whether it is where it is for too long. The `timeout` of run() is that of run() alone."""
        if self.ready and not self.mini_batch:
            return False
        doing = self.doing
        if doing != self._limited:
            self._limit(REPORT if doing == "the writing of its rows" else timeout)
        return self.deadline < self._watch.seconds

    @property
    def is_blameless(self) -> bool:
        """It has done a mini-batch, and has not begun the one that it is to do now."""
        return self._has_answered and self.doing == "the wait for its mini-batch"

    # --- its end

    def dismiss(self) -> None:
        """Asks the worker to call shutdown() and to end."""
        self._send("0 0\n")

    def has_ended(self, wait: float = 0) -> bool:
        """Whether the process has, after at most `wait` seconds. Its pipe may be open: in what it forked."""
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, wait: float = 0) -> str:
        """Ends the process, and all that it started, after at most `wait` seconds; says how it ended."""
        self.has_ended(wait)
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self._guard.note(self.process.pid)
        self.shorten_logs()
        os.close(self._orders)
        os.close(self.pipe)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def shorten_logs(self) -> None:
        """Keeps a script that prints without end from filling the disk."""
        for path in self._logs:
            shorten(path)

    def write_error(self, text: str) -> None:
        with self.error_log.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(cut(text.rstrip(), 2 * LONGEST_TRACEBACK) + "\n")


def new_slate() -> IO[bytes]:
    slate = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    slate.write(struct.pack(SLATE, NOWHERE, NOWHERE))  # now: to be short of room later would end a process
    return slate


def log_file(logs: Path, kind: str, worker: Worker) -> Path:
    """The log of a worker, under the name that Azure gives it (see job_logs.py)."""
    ending = "log.txt" if kind == "entry_script_log" else f"{kind}.txt"
    path = logs / "user" / kind / worker.instance.name / f"{worker.name}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def worker_arguments(job: Job, worker: Worker, descriptors: dict[str, int]) -> list[str]:
    values = {
        "scoring-script": job.deployment.code / job.deployment.scoring_script,
        "listing": job.listing,
        **descriptors,
        "output-action": job.deployment.output_action,
        "logging-level": job.deployment.logging_level,
        "log": log_file(job.logs, "entry_script_log", worker),
    }
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
