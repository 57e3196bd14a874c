"""Scoring jobs, one at a time: resolve what the deployment names, stage it, run the executor, publish.

The executor is the command line `python -m local_workspace score`, in a process of its own. A job is a plain
dict (`new_job` lists its keys), kept in the store under the kind "jobs"; its files are in `jobs/<name>/`.
"""

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import yaml

from local_workspace.errors import ServiceError
from local_workspace.store import Store, local_path

TERMINAL = ("Completed", "Failed", "Canceled")
LOG_CONTAINER = "azureml"
EXECUTION_LOG = "logs/azureml/executionlogs.txt"  # the file that `az ml job stream` prints for a parent job
STOP_SECONDS = 10  # between SIGINT, SIGTERM and SIGKILL
INTERRUPTED = 130
STOPPED = "The local workspace was stopped while this job ran. Invoke the endpoint again."

Job = dict[str, Any]
Location = dict[str, str]  # container, path: where a folder or file of the workspace lies


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
        self._closing = False
        self._recover()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        self._save(job)
        self._log(job, f"queued: {job['name']}")
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
                self._end(job, "Canceled")
            else:
                self._save(job | {"status": "CancelRequested"})
        if job["status"] == "Running" and self._running is not None:
            threading.Thread(target=_stop, args=(self._running,)).start()

    def close(self) -> list[str]:
        """Stop: the job that runs fails with a reason, those that wait start with the next server."""
        self._closing = True
        unfinished = [job["name"] for job in self.all() if job["status"] not in TERMINAL]
        if self._running is not None:
            _stop(self._running)
        self._queue.put(None)
        self._thread.join()
        return unfinished

    def log_files(self, job: Job, run: str) -> dict[str, str]:
        """Published names of the logs of a run: the parent has one log, its scoring job the executor's."""
        folder = self.folder(job)
        if run == job["name"]:
            return {EXECUTION_LOG: self._publish_log(run, EXECUTION_LOG, folder / EXECUTION_LOG)}
        output = folder / "output"
        files = sorted(path for path in (output / "logs").rglob("*") if path.is_file())
        names = {path.relative_to(output).as_posix(): path for path in files}
        return {name: self._publish_log(run, name, path) for name, path in names.items()}

    def _publish_log(self, run: str, name: str, path: Path) -> str:
        blob = f"ExperimentRun/dcid.{run}/{name}"
        self._store.publish(LOG_CONTAINER, blob, path, {"content_type": "text/plain; charset=utf-8"})
        return blob

    # The thread that works the queue

    def _work(self) -> None:
        while (name := self._queue.get()) is not None and not self._closing:
            with self._lock:
                job = self.get(name)
                if job is None or job["status"] != "NotStarted":
                    continue
                job |= {"status": "Running", "started": now()}
                self._save(job)
            try:
                status, error = self._run(job)
            except ServiceError as problem:
                status, error = "Failed", {"code": problem.code, "message": problem.message}
            except OSError as problem:  # of the disk, or a name that no file can have
                message = f"{problem.strerror}: {problem.filename}"
                status, error = "Failed", {"code": "UserError", "message": message}
            except Exception as problem:  # whatever it is, the next job gets its turn
                status, error = "Failed", {"code": "SystemError", "message": repr(problem)}
            with self._lock:
                self._end(job, status, error)

    def _run(self, job: Job) -> tuple[str, dict[str, str] | None]:
        folder = self.folder(job)
        self._stage(job, folder)
        exit_code = self._execute(job, folder)
        job["summary"] = _read_json(folder / "output" / "summary.json")
        if self._closing:
            return "Failed", {"code": "UserError", "message": STOPPED}
        canceled = (self.get(job["name"]) or job)["status"] == "CancelRequested"
        if canceled or exit_code == INTERRUPTED:
            return "Canceled", None
        if exit_code != 0:
            return "Failed", {"code": "UserError", "message": _reason(job, folder, exit_code)}
        self._publish_output(job, folder / "output" / "score")
        return "Completed", None

    def _stage(self, job: Job, folder: Path) -> None:
        for what in ("code", "model", "data"):
            place = job["places"].get(what)
            if place is None:
                continue  # an MLflow model brings its own code
            keep_name = what == "model"
            files = self._store.stage(place["container"], place["path"], folder / what, keep_name=keep_name)
            self._log(job, f"{what}: {len(files)} file(s)")
            if not files:
                raise ServiceError(404, "UserError", f"the {what} of the job has no file: {place['path']}")
        settings = job["deployment"]["settings"]
        # A worker gets no variables but its deployment's: these keep its scoring script on this machine.
        variables = (settings.get("environment_variables") or {}) | self._network
        deployment = job["deployment"] | {"settings": settings | {"environment_variables": variables}}
        text = yaml.safe_dump(deployment, sort_keys=False)
        (folder / "deployment.yml").write_text(text, encoding="utf-8")

    def _execute(self, job: Job, folder: Path) -> int:
        """Run the executor; what it says is the execution log. It holds `alive` locked while it lives."""
        model = job["places"]["model"]["path"].rstrip("/").rpartition("/")[2]
        command = [sys.executable, "-m", "local_workspace", "score", str(folder / "deployment.yml")]
        command += ["--data", str(folder / "data"), "--model", str(folder / "model" / model)]
        command += ["--output", str(folder / "output")]
        with (folder / EXECUTION_LOG).open("ab") as log, (folder / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
            )
            print(process.pid, file=alive, flush=True)
        with self._lock:
            self._running = process
            asked_to_stop = self._closing or (self.get(job["name"]) or job)["status"] == "CancelRequested"
        if asked_to_stop:
            _stop(process)
        exit_code = process.wait()
        with self._lock:
            self._running = None
        return exit_code

    def _publish_output(self, job: Job, folder: Path) -> None:
        place = job["places"]["output"]
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = f"{place['path']}/{path.relative_to(folder).as_posix()}"
            if self._store.blob(place["container"], name) is not None:
                raise ServiceError(409, "UserError", f"the output file exists already: {name}")
            self._store.publish(place["container"], name, path, {"content_type": "application/octet-stream"})

    def _end(self, job: Job, status: str, error: dict[str, str] | None = None) -> None:
        self._log(job, f"{status.lower()}: {job['name']}" + (f": {error['message']}" if error else ""))
        for run in (job["name"], job["child"]):
            self.log_files(job, run)  # from here on they are read as files, by a download for example
        self._save(job | {"status": status, "error": error, "ended": now()})

    def _save(self, job: Job) -> None:
        self._store.put("jobs", job["name"], job)

    def _log(self, job: Job, line: str) -> None:
        path = self.folder(job) / EXECUTION_LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            print(now(), line, file=log)

    def _recover(self) -> None:
        """After a restart a job that ran is failed, because its executor lost its server; others wait on."""
        for job in self.all():
            if job["status"] == "NotStarted":
                self._queue.put(job["name"])
            elif job["status"] not in TERMINAL:
                _kill_orphan(self.folder(job) / "alive")
                self._end(job, "Failed", {"code": "UserError", "message": STOPPED})


def _stop(process: subprocess.Popen[bytes]) -> None:
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


def _kill_orphan(alive: Path) -> None:
    """End the executor of a server that was killed. The lock tells that the process id is still its own."""
    if not alive.is_file():
        return
    with alive.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            process_id = _number(file)
            if process_id is not None:
                os.killpg(process_id, signal.SIGKILL)


def _number(file: TextIO) -> int | None:
    text = file.read().strip()
    return int(text) if text.isdecimal() else None


def _reason(job: Job, folder: Path, exit_code: int) -> str:
    """Why the job failed, in one line: the executor's own word, or the last line of its log."""
    summary = job["summary"] or {}
    if cause := summary.get("cause"):
        return str(cause)
    lines = (folder / EXECUTION_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return f"{said[-1].removeprefix('error:').strip()} (the executor ended with exit code {exit_code})"


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def now() -> str:
    """The time as ARM writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
