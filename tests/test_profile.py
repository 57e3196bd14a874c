"""`score --profile`: where the time goes, of scoring scripts that know nothing of it."""

import json
import platform
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from score_runs import run_after, run_command, score, wait_until, write_deployment

from local_workspace.profile import FEWEST, Profile

SLOW = """
import threading
from concurrent.futures import ThreadPoolExecutor

def init():
    time.sleep(1.5)

def run(mini_batch):
    rested = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        counted = threads.submit(count, rested)
        nothing()
        rested.set()
        counted.result()
    return mini_batch

def nothing():
    time.sleep(1.4)

def count(rested):  # until run() has waited for it as long as it had nothing to do
    rested.wait()
    time.sleep(1.3)
"""


def lines(printed: str, heading: str) -> dict[str, int]:
    """The percentages of the lines of the scoring script, as printed below `heading`."""
    below = printed.partition(f"{heading}:\n")[2].splitlines()
    words = [line.split() for line in below[: next(n for n, line in enumerate(below) if " % " not in line)]]
    return {" ".join(line[3:]): int(line[0]) for line in words}


def profile_of(folder: Path) -> Path:
    return folder / "output" / "logs" / "profile.speedscope.json"


def test_what_run_does_and_waits_for_is_named_by_line(tmp_path: Path) -> None:
    write_deployment(tmp_path, SLOW, files=2)
    job = run_command(tmp_path, "--profile")
    assert job.code == 0
    own = lines(job.stderr, "the lines that run() itself is in")
    assert own["time.sleep(1.4)"] > 20 and own["counted.result()"] > 20
    others = lines(job.stderr, "the lines that its other threads are in meanwhile")
    assert others["rested.wait()"] > 20 and others["time.sleep(1.3)"] > 20
    assert "time.sleep(1.5)" not in job.stderr  # init() is over by then
    assert " % in run(), " in job.stderr and "profile" not in job.stdout


def test_the_profile_opens_in_speedscope_and_holds_every_thread(tmp_path: Path) -> None:
    write_deployment(tmp_path, SLOW, files=1)
    job = run_command(tmp_path, "--profile")
    assert f"to open at https://www.speedscope.app: {profile_of(tmp_path)}\n" in job.stderr
    profile = json.loads(profile_of(tmp_path).read_text())
    assert profile["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [thread["name"] for thread in profile["profiles"]]
    assert any("MainThread" in name for name in names) and any("ThreadPool" in name for name in names)


def test_rows_and_their_wait_are_told_from_run(tmp_path: Path) -> None:
    script = """
class Row:
    def __str__(self):
        time.sleep(1)
        return "row"

def run(mini_batch):
    time.sleep(1)
    return [Row()]
"""
    write_deployment(tmp_path, script, files=1)
    job = run_command(tmp_path, "--profile")
    shares = job.stderr.partition("times a second): ")[2].splitlines()[0].split(", ")
    assert [share.split(" % ")[1] for share in shares] == [
        "in run()",
        "waiting for a mini-batch",
        "passing rows on",
    ]
    run, _, rows = (int(share.split()[0]) for share in shares)
    assert run > 20 and rows > 20


def test_a_worker_that_dies_in_run_has_a_profile(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch):\n    time.sleep(1.5)\n    os._exit(1)", files=1)
    job = run_command(tmp_path, "--profile")
    assert job.code == 1
    assert lines(job.stderr, "the lines that run() itself is in")["time.sleep(1.5)"] > 50


def test_a_script_that_a_link_leads_to_is_named_too(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch):\n    time.sleep(1.5)\n    return mini_batch", files=1)
    (tmp_path / "code").rename(tmp_path / "kept")
    (tmp_path / "code").symlink_to(tmp_path / "kept")
    job = run_command(tmp_path, "--profile")
    assert lines(job.stderr, "the lines that run() itself is in")["time.sleep(1.5)"] > 50


def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    job = score(tmp_path, "def run(mini_batch): return mini_batch", 1, ["--profile"])
    assert job.code == 0
    assert f"where at least {FEWEST} are needed: score more files" in job.stderr
    assert "the lines that" not in job.stderr


def test_without_a_worker_there_is_no_profile(tmp_path: Path) -> None:
    script = "def init(): raise OSError('no')\ndef run(mini_batch): pass"
    job = score(tmp_path, script, 1, ["--profile"])
    assert job.code == 1
    assert "no profile: no worker came to the end of its init()" in job.stderr


def test_a_job_whose_executor_was_killed_is_resumed_with_a_profile_of_its_own(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    if not notes():
        time.sleep(1.5)
        note("killed")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return mini_batch
"""
    write_deployment(tmp_path, script, files=1)
    assert run_command(tmp_path, "--profile").code == -signal.SIGKILL
    wait_until(profile_of(tmp_path).exists)  # py-spy outlives the executor, but not the worker
    job = run_command(tmp_path, "--profile", "--resume")
    assert job.code == 0, job.stderr
    assert "no profile: run() was too short to tell" in job.stderr


def test_the_profile_of_an_earlier_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    profile = Profile(tmp_path)
    profile.samples.write_text('{"shared": {"frames": []}, "profiles": []}')
    with subprocess.Popen([sys.executable, "-c", ""]) as worker:
        worker.wait()
    profile.begin(worker.pid)  # py-spy comes too late
    said = f"no profile: py-spy wrote none; what it said: {tmp_path / 'py-spy.txt'}"
    assert profile.describe(tmp_path) == said
    assert profile.log.stat().st_size


def test_a_profile_changes_no_row(tmp_path: Path) -> None:
    script = "def run(mini_batch): return [p[-5:] for p in mini_batch]"
    with_profile = score(tmp_path, script, 30, ["--profile"]).predictions
    assert score(tmp_path, script, 30, ["--overwrite"]).predictions == with_profile != b""


# --- where py-spy cannot do it, nothing has begun

# As in a container without SYS_PTRACE: ptrace() fails with EPERM. A program of the kernel's filter is a list
# of (code, jump if true, if false, value): load the number of the system call; compare it; allow; refuse.
PTRACE = {"x86_64": 101, "aarch64": 117}.get(platform.machine(), 0)
CONTAINER = f"""
import struct
steps = [(0x20, 0, 0, 0), (0x15, 1, 0, {PTRACE}), (0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x00050001)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(filter)))
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP
"""


@pytest.mark.skipif(sys.platform != "linux" or not PTRACE, reason="the filter is Linux's, for two processors")
def test_a_container_that_lets_nobody_look_into_a_process_is_an_error_before_the_job(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch):\n    note('run')\n    return mini_batch", files=1)
    job = run_after(CONTAINER, tmp_path, "--profile")
    assert job.code == 2
    assert "error: --profile: py-spy cannot look into another process here: " in job.stderr
    assert "(EPERM: Operation not permitted)\n\nhint: a container needs --cap-add SYS_PTRACE, " in job.stderr
    assert "Traceback" not in job.stderr and job.notes == []
    assert not (tmp_path / "output" / "score").exists()
    assert run_after(CONTAINER, tmp_path).code == 0  # as the hint says


def test_a_missing_py_spy_is_an_error_before_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    job = score(tmp_path, "def run(mini_batch):\n    note('run')\n    return mini_batch", 1, ["--profile"])
    assert job.code == 2
    assert "error: --profile: py-spy is not installed\n\nhint: install it: " in job.stderr
    assert job.notes == []
