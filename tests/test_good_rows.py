"""No finished work is thrown away: the timeout judges run() alone, and nobody pays for another's death."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from score_runs import Run, read_notes, score, scoring, wait_until

from local_workspace import reasons, watch

TIMEOUT = 5  # seconds; long enough for a busy machine to get to the point at which the test stops it


def test_what_is_done_with_the_rows_after_run_is_not_charged_to_it(tmp_path: Path) -> None:
    script = """
class Slow(str):
    def __str__(self):
        time.sleep(1.5)
        return "a row"

def run(mini_batch):
    return [Slow()]
"""
    run = score(tmp_path, script, 2, retry_settings={"max_retries": 1, "timeout": 1})
    assert run.failed == {}
    assert run.rows == ["a row", "a row"]


def calls_to_explain(files: int) -> int:
    """How many functions are called to explain files of which a third has no row, and as many messages."""
    paths = [f"/data/{number}/{number % 7} {number}.jpg" for number in range(files)]
    rows = [(path, 1) for path in paths if int(path.rpartition(" ")[2][:-4]) % 3]
    messages = [f"{path}: cannot be read" for path in paths[::3]]
    calls = 0

    def count(frame: object, event: str, value: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        failed = reasons.failed_files(paths, rows, len(rows), messages)
    finally:
        sys.setprofile(None)
    assert failed == [(path, f"{path}: cannot be read") for path in paths[::3]]
    return calls


def test_explaining_failures_takes_time_that_grows_with_the_files_and_not_with_their_square() -> None:
    assert calls_to_explain(4_000) < 8 * calls_to_explain(1_000), "files times messages is 16 times as much"


WAITS = """
def run(mini_batch):
    note(f"begun {os.getpid()}")
    wait_until(lambda: os.path.exists("go"))
    note("done")
    return mini_batch
"""


def stop_and_go_on(folder: Path, stop: Callable[[int, int], None]) -> Run:
    """A job whose executor is stopped for longer than the timeout, while its only worker is in run()."""
    settings = {"max_retries": 1, "timeout": TIMEOUT}
    with scoring(folder, WAITS, 1, retry_settings=settings) as job:
        wait_until(lambda: read_notes(folder))
        stop(job.pid, int(read_notes(folder)[0].split()[1]))
        (folder / "code" / "go").touch()
        job.send_signal(signal.SIGCONT)
        job.communicate(timeout=60)
    return Run(job.returncode, folder, "", "")


def test_an_executor_that_was_stopped_takes_what_is_finished_by_then(tmp_path: Path) -> None:
    def stop(executor: int, worker: int) -> None:
        os.kill(executor, signal.SIGSTOP)
        (tmp_path / "code" / "go").touch()
        wait_until(lambda: "done" in read_notes(tmp_path))
        time.sleep(TIMEOUT + 1)

    run = stop_and_go_on(tmp_path, stop)
    assert (run.code, run.failed, len(run.rows)) == (0, {}, 1)
    assert read_notes(tmp_path).count("done") == 1


def test_a_worker_that_was_stopped_along_with_its_executor_has_the_time_that_was_left(tmp_path: Path) -> None:
    def stop(executor: int, worker: int) -> None:
        for process in (executor, worker):
            os.kill(process, signal.SIGSTOP)
        time.sleep(TIMEOUT + 1)
        os.kill(worker, signal.SIGCONT)

    run = stop_and_go_on(tmp_path, stop)
    assert (run.code, run.failed, len(run.rows)) == (0, {}, 1)


def test_a_clock_counts_only_while_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.2, 100.4, 700.4, 700.5])
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(times))
    clock = watch.Watch()
    for expected in (0.2, 0.4, 1.4, 1.5):
        clock.look()
        assert clock.seconds == pytest.approx(expected)


@pytest.mark.parametrize("in_child", ["time.sleep(600)", "os.setsid(); time.sleep(600)"])
def test_a_worker_that_ends_in_init_is_noticed_though_its_child_holds_the_pipe_open(
    tmp_path: Path, in_child: str
) -> None:
    script = f"""
def init():
    child = os.fork()
    if not child:
        {in_child}
    note(child)
    os.kill(os.getpid(), signal.SIGKILL)

def run(mini_batch):
    return mini_batch
"""
    run = score(tmp_path, script, 1, ["--init-timeout", "20"])
    for child in run.notes:
        with_its_own_session = "setsid" in in_child
        if with_its_own_session:  # the README does not promise that it is ended
            os.kill(int(child), signal.SIGKILL)
    assert run.summary["cause"].endswith("the worker ended during init(): killed by SIGKILL")
    assert len(run.notes) == 3


def test_a_worker_that_ends_between_two_mini_batches_costs_neither_an_attempt(tmp_path: Path) -> None:
    script = """
ORDERS = int(sys.argv[sys.argv.index("--orders") + 1])

def init():
    note("init")

def run(mini_batch):
    os.close(ORDERS)  # so that the worker ends as soon as it looks for more
    return mini_batch
"""
    run = score(tmp_path, script, 12, instance_count=2)
    assert (run.code, run.failed) == (0, {})
    assert {row["attempts"] for row in run.processed} == {"1"}
    assert len(run.rows) == 12
    assert len(run.notes) >= 12


def test_a_worker_that_never_takes_a_mini_batch_ends_the_job(tmp_path: Path) -> None:
    script = """
ORDERS = int(sys.argv[sys.argv.index("--orders") + 1])

def init():
    os.close(ORDERS)

def run(mini_batch):
    return mini_batch
"""
    run = score(tmp_path, script, 2, retry_settings={"max_retries": 2})
    assert run.code == 1
    assert set(run.failed.values()) == {"the worker ended during the wait for its mini-batch: exit code 1"}
    assert [row["attempts"] for row in run.processed] == ["2", "2"]


def test_a_mini_batch_that_is_tried_again_on_the_same_worker_has_its_timeout_again(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    note("tried")
    if len(notes()) == 1:
        return None  # which fails after run() has returned
    time.sleep(60)
"""
    run = score(tmp_path, script, 1, retry_settings={"max_retries": 2, "timeout": 1})
    assert run.failed == {"0.jpg": "run() took longer than the timeout of 1 s"}
