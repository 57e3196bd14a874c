"""Scoring jobs, one at a time: resolve what the deployment names, stage it, run the executor, publish.

The executor is the command line `python -m local_workspace score`, in a process of its own. A job is a plain
dict (`new_job` lists its keys), kept in the store under the kind "jobs"; its files are in `jobs/<name>/`.
"""

import queue
import subprocess
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from local_workspace import execution
from local_workspace.errors import ServiceError, UserError
from local_workspace.execution import EXECUTION_LOG
from local_workspace.files import local_path, open_regular, walk
from local_workspace.instance import Guard
from local_workspace.job_files import Location, publish, stage
from local_workspace.store import Store, name_problem

TERMINAL = ("Completed", "Failed", "Canceled")
LOG_CONTAINER = "azureml"
INTERRUPTED = 130
TRY_AGAIN = 1  # seconds, where the disk is full
STOPPED = "The local workspace was stopped while this job ran. Invoke the endpoint again."

Job = dict[str, Any]


def new_job(name: str, *, deployment: dict[str, Any], places: dict[str, Location], **details: Any) -> Job:
    """The record of a job. `deployment` is the content of its YAML, `places` of code, model, data, output."""
    return {
        "name": name,
        "child": str(uuid.uuid4()),  # the scoring job that the parent contains
        "status": "NotStarted",
        "created": now(),
        "started": None,
        "ended": None,
        "error": None,  # {code, message} of a failed job
        "summary": None,  # what the executor wrote into summary.json
        "deployment": deployment,
        "places": places,
        **details,
    }


class Jobs:
    def __init__(self, store: Store, environment: Mapping[str, str], network: Mapping[str, str]) -> None:
        self._store = store
        self._environment, self._network = dict(environment), dict(network)
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # guards the status of every job, and _running
        self._closing = threading.Event()
        self._recover()
        self._guard = Guard()  # ends the executor when this server has been killed
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        self._log(job, f"queued: {job['name']}")
        self._save(job)
        self._queue.put(job["name"])

    def get(self, name: str) -> Job | None:
        return self._store.get("jobs", name)

    def all(self) -> list[Job]:
        return self._store.resources("jobs")

    def find_child(self, child: str) -> Job | None:
        return next((job for job in self.all() if job["child"] == child), None)

    def folder(self, job: Job) -> Path:
        return local_path(self._store.folder / "jobs", job["name"])

    def cancel(self, name: str) -> None:
        """A job that waits is canceled at once; one that runs when its executor has ended."""
        with self._lock:
            job = self.get(name)
            if job is None or job["status"] in TERMINAL:
                return
            if job["status"] == "NotStarted":
                self._log_end(job, "Canceled")
                self._end(job, "Canceled")
            else:
                self._save(job | {"status": "CancelRequested"})
        if job["status"] == "Running" and self._running is not None:
            threading.Thread(target=execution.stop, args=(self._running,)).start()

    def close(self) -> list[str]:
        """Stop: the job that runs fails with a reason, those that wait start with the next server."""
        self._closing.set()
        unfinished = [job["name"] for job in self.all() if job["status"] not in TERMINAL]
        if self._running is not None:
            execution.stop(self._running)
        self._queue.put(None)
        self._thread.join()
        self._guard.close()
        return unfinished

    def log_files(self, job: Job, run: str) -> dict[str, str]:
        """Published names of the logs of a run: the parent has one log, its scoring job the executor's."""
        folder = self.folder(job)
        if run == job["name"]:
            return {EXECUTION_LOG: self._publish_log(run, EXECUTION_LOG, folder / EXECUTION_LOG)}
        output = folder / "output"
        files = sorted(path for path, problem in walk(output / "logs") if not problem)
        names = {path.relative_to(output).as_posix(): path for path in files}
        return {name: self._publish_log(run, name, names[name]) for name in names if not name_problem(name)}

    def _publish_log(self, run: str, name: str, path: Path) -> str:
        blob = f"ExperimentRun/dcid.{run}/{name}"
        known = self._store.blob(LOG_CONTAINER, blob)
        if known is None or known.path != path:  # it is asked for at every poll, also on a full disk
            self._store.publish(LOG_CONTAINER, blob, path, {"content_type": "text/plain; charset=utf-8"})
        return blob

    # The thread that works the queue

    def _work(self) -> None:
        while (name := self._queue.get()) is not None and not self._closing.is_set():
            job = self._insist(lambda name=name: self._begin(name))
            if job is None:
                continue
            status, error = self._outcome(job)
            self._log_end(job, status, error)
            self._insist(lambda job=job, status=status, error=error: self._end(job, status, error))

    def _outcome(self, job: Job) -> tuple[str, dict[str, str] | None]:
        code = "UserError"
        try:
            return self._run(job)
        except (ServiceError, UserError) as problem:
            message = problem.message
        except OSError as problem:  # of the disk, or a name that no file can have
            message = f"{problem.strerror}: {problem.filename}"
        except Exception as problem:  # whatever it is, the next job gets its turn
            code, message = "SystemError", repr(problem)
        return "Failed", {"code": code, "message": printable(message)}

    def _insist(self, change: Callable[[], Job | None]) -> Job | None:
        """Make a change as soon as the disk takes it; the next start tells where it never did."""
        while True:
            try:
                with self._lock:
                    return change()
            except OSError:
                if self._closing.wait(TRY_AGAIN):
                    return None

    def _begin(self, name: str) -> Job | None:
        job = self.get(name)
        if job is None or job["status"] != "NotStarted":
            return None
        job |= {"status": "Running", "started": now()}
        self._save(job)
        return job

    def _run(self, job: Job) -> tuple[str, dict[str, str] | None]:
        folder = self.folder(job)
        self._stage(job, folder)
        exit_code = self._execute(job, folder)
        job["summary"] = execution.read_summary(folder)
        if self._closing.is_set():
            return "Failed", {"code": "UserError", "message": STOPPED}
        canceled = (self.get(job["name"]) or job)["status"] == "CancelRequested"
        if canceled or exit_code == INTERRUPTED:
            return "Canceled", None
        if exit_code != 0:
            return "Failed", {
                "code": "UserError",
                "message": printable(execution.reason(job["summary"], folder, exit_code)),
            }
        self._publish_output(job, folder)
        return "Completed", None

    def _stage(self, job: Job, folder: Path) -> None:
        settings = dict(job["deployment"]["settings"])
        for what in ("code", "model", "data"):
            place = job["places"].get(what)
            if place is None:
                continue  # an MLflow model brings its own code
            files, problems = stage(self._store, place, folder / what, keep_name=what == "model")
            self._log(job, f"{what}: {files} file(s)")
            for name, problem in problems:
                self._log(job, f"failed: {name}: {problem}")
            if not files and not problems:
                raise ServiceError(404, "UserError", f"the {what} of the job has no file: {place['path']}")
            if problems and (what != "data" or not files):
                raise UserError("{}: {}".format(*problems[0]))
            if problems and 0 <= settings["error_threshold"] < len(problems):
                raise UserError("{}: {}, more than the error_threshold".format(*problems[0]))
            if problems and settings["error_threshold"] > 0:
                settings["error_threshold"] -= len(problems)  # they count
        # A worker gets no variables but its deployment's: these keep its scoring script on this machine.
        settings["environment_variables"] = (settings.get("environment_variables") or {}) | self._network
        text = yaml.safe_dump(job["deployment"] | {"settings": settings}, sort_keys=False)
        (folder / "deployment.yml").write_text(text, encoding="utf-8")

    def _execute(self, job: Job, folder: Path) -> int:
        process = execution.start(job, folder, self._environment, self._guard)
        with self._lock:
            self._running = process
            canceled = (self.get(job["name"]) or job)["status"] == "CancelRequested"
        if self._closing.is_set() or canceled:
            execution.stop(process)
        exit_code = process.wait()
        self._guard.note(process.pid)
        with self._lock:
            self._running = None
        return exit_code

    def _publish_output(self, job: Job, folder: Path) -> None:
        problems = dict(publish(self._store, job["places"]["output"], folder / "output" / "score"))
        for name, problem in problems.items():
            self._log(job, f"left out of the output: {printable(name)}: {problem}")
        rows = job["deployment"]["settings"]["output_file_name"]
        if rows in problems:
            raise UserError(f"the output file {rows}: {problems[rows]}")

    def _end(self, job: Job, status: str, error: dict[str, str] | None = None) -> None:
        for run in (job["name"], job["child"]):
            self.log_files(job, run)  # from here on they are read as files, by a download for example
        self._save(job | {"status": status, "error": error, "ended": now()})

    def _log_end(self, job: Job, status: str, error: dict[str, str] | None = None) -> None:
        with suppress(OSError):  # a full disk; the status matters more
            self._log(job, f"{status.lower()}: {job['name']}" + (f": {error['message']}" if error else ""))

    def _save(self, job: Job) -> None:
        self._store.put("jobs", job["name"], job)

    def _log(self, job: Job, line: str) -> None:
        path = self.folder(job) / EXECUTION_LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(path, "a", encoding="utf-8", links=False) as log:
            print(now(), printable(line), file=log)

    def _recover(self) -> None:
        """After a restart a job that ran is failed, because its executor lost its server; others wait on."""
        for job in self.all():
            if job["status"] == "NotStarted":
                self._queue.put(job["name"])
            elif job["status"] not in TERMINAL:
                execution.kill_orphan(self.folder(job) / "alive")
                error = {"code": "UserError", "message": STOPPED}
                self._log_end(job, "Failed", error)
                self._end(job, "Failed", error)


def printable(line: str) -> str:
    """On one line, also names that are not UTF-8 or hold control characters."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def now() -> str:
    """The time as ARM writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
