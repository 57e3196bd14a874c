"""Scoring jobs with a small scoring script of their own, by the command line."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from local_workspace.__main__ import main

# Every script of the tests begins with this. It runs in its own folder, where it keeps notes for the test.
BEGINNING = """
import glob, logging, os, signal, subprocess, sys, time

def init():
    pass

def note(line):
    with open("notes", "a") as notes:
        notes.write(f"{line}\\n")

def notes():
    return open("notes").read().splitlines() if os.path.exists("notes") else []

def wait_until(true):
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)

def name(mini_batch):
    return os.path.basename(mini_batch[0])

"""
ONCE = {"max_retries": 1}  # attempts in total


@dataclass(frozen=True)
class Run:
    """A scoring job that has ended, and what it left."""

    code: int
    folder: Path
    stdout: str
    stderr: str

    @property
    def predictions(self) -> bytes:
        return (self.folder / "output" / "score" / "predictions.csv").read_bytes()

    @property
    def rows(self) -> list[str]:
        return self.predictions.decode().splitlines()

    @property
    def failed(self) -> dict[str, str]:
        """The reason of each failed file."""
        with (self.folder / "output" / "failed.csv").open(newline="") as file:
            return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "output" / "summary.json").read_text())

    @property
    def processed(self) -> list[dict[str, str]]:
        """What the logs say of each mini-batch."""
        path = self.folder / "output" / "logs" / "sys" / "job_report" / "processed_mini-batches.csv"
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def notes(self) -> list[str]:
        return read_notes(self.folder)


def read_notes(folder: Path) -> list[str]:
    path = folder / "code" / "notes"
    return path.read_text().splitlines() if path.exists() else []


def write_deployment(folder: Path, script: str, files: int | Iterable[str], **settings: object) -> Path:
    """Lays out a deployment with `script`, a model and the input files; returns its YAML."""
    for name in ("code", "model", "data"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "code" / "driver.py").write_text(BEGINNING + script)
    for name in [f"{number}.jpg" for number in range(files)] if isinstance(files, int) else files:
        (folder / "data" / name).touch()
    deployment = {
        "name": "classifier",
        "endpoint_name": "images",
        "type": "model",
        "model": {"path": "model"},
        "code_configuration": {"code": "code", "scoring_script": "driver.py"},
        "compute": "azureml:cluster",
        "settings": {"mini_batch_size": 1, "retry_settings": ONCE, **settings},
    }
    (folder / "deployment.yml").write_text(json.dumps(deployment))  # JSON is YAML, too
    return folder / "deployment.yml"


def score(
    folder: Path,
    script: str,
    files: int | Iterable[str] = 4,
    arguments: Iterable[str] = (),
    **settings: object,
) -> Run:
    """Scores `files` with `script` by the command line, in this process."""
    deployment = write_deployment(folder, script, files, **settings)
    argv = ["score", str(deployment), "--data", str(folder / "data"), "--output", str(folder / "output")]
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        code = main([*argv, *arguments])
    return Run(code, folder, stdout.getvalue(), stderr.getvalue())


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended counts as gone though nobody has asked how."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_until(true: Callable[[], object], seconds: float = 50) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def overview(run: Run) -> str:
    (path,) = (run.folder / "output" / "logs").glob("job_progress_overview.*.txt")
    return path.read_text()


# --- as a process of its own

COMMAND = [sys.executable, "-m", "local_workspace", "score"]
ROOT = Path(__file__).parent.parent


def command(folder: Path) -> list[str | Path]:
    """The command line over what write_deployment has laid out in `folder`."""
    return [*COMMAND, folder / "deployment.yml", "--data", folder / "data", "--output", folder / "output"]


def run_command(folder: Path, *arguments: str | Path) -> Run:
    """Runs the command line as a process of its own, to its end."""
    job = subprocess.run(
        [*command(folder), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return Run(job.returncode, folder, job.stdout, job.stderr)


@contextlib.contextmanager
def scoring(folder: Path, script: str, files: int, **settings: object) -> Iterator[subprocess.Popen]:
    """The command line as a process of its own, in the middle of its work."""
    write_deployment(folder, script, files, **settings)
    with subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        try:
            yield job
        finally:
            job.kill()


def run_after(preparation: str, folder: Path, *arguments: str) -> Run:
    """The command line in a process that has changed its own limits first."""
    begin, go_on = "import ctypes, os, resource, sys", "os.execv(sys.argv[1], sys.argv[1:])"
    start = f"{begin}\n{preparation}\n{go_on}"
    command_line = [sys.executable, "-c", start, *command(folder), *arguments]
    job = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return Run(job.returncode, folder, job.stdout, job.stderr)


# Root loses its right to pass over the permissions of files: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and
# CAP_DAC_READ_SEARCH. Anyone else has none, and changes nothing.
UNPRIVILEGED = """
if sys.platform == "linux":
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
"""
