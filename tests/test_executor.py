"""The rules of Azure ML's batch executor, each with a small scoring script of its own."""

import json
import os
from pathlib import Path

import pytest
from score_runs import Run, is_alive, overview, read_notes, score, wait_until, write_deployment

from local_workspace import executor
from local_workspace.__main__ import main

# --- what the scoring script gets, and what it gives


def test_init_runs_once_in_each_worker_and_run_in_the_same_process(tmp_path: Path) -> None:
    script = """
def init():
    note(f"init {os.getpid()}")

def run(mini_batch):
    wait_until(lambda: len([line for line in notes() if line.startswith("init")]) == 4)
    note(f"run {os.getpid()}")
    return mini_batch
"""
    run = score(tmp_path, script, 12, instance_count=2, max_concurrency_per_instance=2)
    started = [line.split()[1] for line in run.notes if line.startswith("init")]
    assert len(set(started)) == len(started) == 4, "instance_count x max_concurrency_per_instance processes"
    assert {line.split()[1] for line in run.notes if line.startswith("run")} <= set(started)
    assert str(os.getpid()) not in started
    assert run.code == 0
    assert run.summary["rows"] == 12
    logs = tmp_path / "output" / "logs" / "user" / "stdout"
    assert sorted(str(path.relative_to(logs)) for path in logs.rglob("*.txt")) == [
        "instance0/process000.stdout.txt",
        "instance0/process001.stdout.txt",
        "instance1/process000.stdout.txt",
        "instance1/process001.stdout.txt",
    ]


def test_no_more_workers_than_mini_batches(tmp_path: Path) -> None:
    script = """
def init():
    note(os.getpid())

def run(mini_batch):
    wait_until(lambda: len(notes()) > 1)
    return mini_batch
"""
    # A number beyond all reason takes no memory either.
    run = score(tmp_path, script, 2, instance_count=2_000_000_000, max_concurrency_per_instance=2_000_000_000)
    assert run.code == 0
    assert len(run.notes) == 2


def test_run_gets_a_list_of_absolute_paths_that_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "def run(mini_batch): note(repr(mini_batch)); mini_batch.clear(); return ['row']"
    deployment = write_deployment(tmp_path, script, 3, mini_batch_size=2)
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(deployment), "--data", "data", "--output", "output"]) == 0
    data = str(tmp_path / "data")
    assert read_notes(tmp_path) == [repr([f"{data}/0.jpg", f"{data}/1.jpg"]), repr([f"{data}/2.jpg"])]
    assert Run(0, tmp_path, "", "").summary["failed"] == 1, (
        "by the files there were, not what is left of them"
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system keeps no process to some cores")
@pytest.mark.parametrize("more_than_cores", [False, True])
def test_workers_share_the_cores_out_unless_there_are_too_few(tmp_path: Path, more_than_cores: bool) -> None:
    script = """
def init():
    note([sorted(os.sched_getaffinity(0)), int(os.environ["OMP_NUM_THREADS"])])

def run(mini_batch):
    wait_until(lambda: len(notes()) == WORKERS)
    return mini_batch
"""
    cores = sorted(os.sched_getaffinity(0))
    workers = len(cores) + 1 if more_than_cores else min(2, len(cores))
    score(tmp_path, f"WORKERS = {workers}\n{script}", workers, instance_count=workers)
    found = [json.loads(line) for line in read_notes(tmp_path)]
    if more_than_cores:
        assert found == [[cores, 1]] * workers
    else:
        each = len(cores) // workers
        shares = [[cores[slot * each : (slot + 1) * each], each] for slot in range(workers)]
        assert sorted(found) == shares


# --- retries


@pytest.mark.parametrize(("max_retries", "attempts"), [(0, 1), (1, 1), (3, 3)])
def test_a_mini_batch_is_tried_max_retries_times_in_total_and_at_least_once(
    tmp_path: Path, max_retries: int, attempts: int
) -> None:
    script = """
def run(mini_batch):
    note(name(mini_batch))
    assert name(mini_batch) != "1.jpg"
    return mini_batch
"""
    run = score(tmp_path, script, 3, retry_settings={"max_retries": max_retries})
    # A failing attempt of one mini-batch does not cost another.
    assert sorted(run.notes) == ["0.jpg", *attempts * ["1.jpg"], "2.jpg"]
    assert [row["attempts"] for row in run.processed] == ["1", str(attempts), "1"]
    assert len(run.rows) == 2
    assert run.failed.keys() == {"1.jpg"}
    assert run.code == 0


def test_a_mini_batch_that_fails_once_succeeds_the_second_time(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    note(name(mini_batch))
    assert notes().count("1.jpg") != 1
    return mini_batch
"""
    run = score(tmp_path, script, 3, retry_settings={"max_retries": 3})
    assert [row["attempts"] for row in run.processed] == ["1", "2", "1"]
    assert run.rows == [str(tmp_path / "data" / f"{number}.jpg") for number in range(3)]
    assert run.summary["failed"] == 0


# --- time-outs and dead workers


def test_over_the_timeout_the_worker_and_all_it_started_is_killed_and_a_new_one_tries_again(
    tmp_path: Path,
) -> None:
    script = """
def init():
    note(f"init {os.getpid()}")

def run(mini_batch):
    if len(notes()) == 1:
        note(f"child {subprocess.Popen(['sleep', '60']).pid}")
        time.sleep(60)
    return mini_batch
"""
    run = score(tmp_path, script, 2, retry_settings={"max_retries": 2, "timeout": 5})
    assert run.code == 0
    assert [line.split()[0] for line in run.notes] == ["init", "child", "init"]
    wait_until(lambda: not any(is_alive(int(line.split()[1])) for line in run.notes))
    assert [(row["attempts"], row["process"]) for row in run.processed] == [
        ("2", "process001"),
        ("1", "process001"),
    ]
    assert "run() took longer than the timeout of 5 s" in overview(run)
    logs = tmp_path / "output" / "logs" / "user" / "stderr" / "instance0"
    assert {path.name for path in logs.iterdir()} == {"process000.stderr.txt", "process001.stderr.txt"}


def test_the_timeout_counts_run_alone_and_not_the_wait_before_it(tmp_path: Path) -> None:
    script = """
def init():
    time.sleep(3.1)

def run(mini_batch):
    time.sleep(0.6)
    return mini_batch
"""
    run = score(tmp_path, script, 6, retry_settings={"max_retries": 2, "timeout": 3})
    assert [row["attempts"] for row in run.processed] == 6 * ["1"]
    assert all(0.6 <= float(row["seconds"]) < 3 for row in run.processed)


def test_a_worker_that_waits_for_the_others_is_never_overdue(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        time.sleep(0.5)
        note("tried")
        assert len(notes()) > 7
    return mini_batch
"""
    run = score(tmp_path, script, 2, instance_count=2, retry_settings={"max_retries": 8, "timeout": 3})
    assert [row["attempts"] for row in run.processed] == ["8", "1"]
    assert "took longer" not in overview(run)


NO_ANSWER = "stopped, since what came on its pipe is no answer"


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("sys.exit()", "exit code 0"),
        ("os._exit(3)", "exit code 3"),
        ("subprocess.Popen(['sleep', '60'], close_fds=False); os._exit(4)", "exit code 4"),
        ("os.closerange(3, 256); time.sleep(60)", "killed by SIGKILL"),
        ("os.write(ANSWERS, b'not an answer\\n'); time.sleep(60)", NO_ANSWER),
    ],
)
def test_a_worker_that_ends_in_run_is_a_failed_attempt_and_a_new_process(
    tmp_path: Path, death: str, reason: str
) -> None:
    script = f"""
ANSWERS = int(sys.argv[sys.argv.index("--answers") + 1])

def init():
    note("init")

def run(mini_batch):
    if name(mini_batch) == "1.jpg":
        {death}
    return mini_batch
"""
    run = score(tmp_path, script, 3, retry_settings={"max_retries": 2})
    assert run.failed == {"1.jpg": f"the worker ended during run(): {reason}"}
    assert run.notes == 3 * ["init"]
    assert len(run.rows) == 2
    logs = tmp_path / "output" / "logs" / "user" / "stdout" / "instance0"
    assert len(list(logs.iterdir())) == 3


# --- init() and shutdown()


@pytest.mark.parametrize(
    ("init", "cause", "arguments"),
    [
        ("raise RuntimeError('no\\nmodel')", "init() raised RuntimeError: no model", []),
        ("sys.exit(3)", "the worker ended during init(): exit code 3", []),
        ("time.sleep(60)", "init() took longer than the timeout of 0.3 s", ["--init-timeout", "0.3"]),
    ],
)
def test_an_instance_is_given_up_when_init_fails_three_times_for_each_worker(
    tmp_path: Path, init: str, cause: str, arguments: list[str]
) -> None:
    script = f"def init():\n    {init}\n\ndef run(mini_batch): return mini_batch"
    run = score(tmp_path, script, 9, arguments)
    assert run.code == 1
    logs = tmp_path / "output" / "logs" / "user" / "stdout" / "instance0"
    assert len(list(logs.iterdir())) == 3, "processes"
    assert f"error: the job failed: init() failed 3 times on each instance. {cause}\n" in run.stderr
    assert run.summary["status"] == "Failed"
    assert run.summary["cause"].endswith(cause)
    assert run.summary["not_scored"] == 9


def test_each_instance_has_its_own_count_of_failures_of_init(tmp_path: Path) -> None:
    script = "def init():\n    note('init')\n    raise OSError\n\ndef run(mini_batch): return mini_batch"
    run = score(tmp_path, script, 9, instance_count=2, max_concurrency_per_instance=2)
    # 3 x 2 of each instance; the other worker of an instance may be starting when the sixth has failed.
    assert 12 <= len(run.notes) <= 14
    assert "init() failed 6 times on each instance" in run.stderr


def test_an_init_that_fails_once_costs_nothing(tmp_path: Path) -> None:
    script = """
def init():
    note("init")
    assert len(notes()) > 1

def run(mini_batch):
    return mini_batch
"""
    run = score(tmp_path, script, 2)
    assert run.code == 0
    assert len(run.notes) == 2
    assert [row["attempts"] for row in run.processed] == ["1", "1"]


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("", "AttributeError: driver.py has no function run()"),
        ("run = 5", "AttributeError: driver.py has no function run()"),
        ("def run(mini_batch) return", "SyntaxError: "),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_script_that_cannot_be_loaded_fails_the_job(tmp_path: Path, script: str, cause: str) -> None:
    run = score(tmp_path, script, 1)
    assert run.code == 1
    assert cause in run.summary["cause"]


def test_shutdown_runs_once_in_each_worker_at_the_end(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    note(f"run {os.getpid()}")
    wait_until(lambda: len(set(notes())) == 2)
    return mini_batch

def shutdown():
    time.sleep(0.2)
    note(f"shutdown {os.getpid()}")
"""
    run = score(tmp_path, script, 6, instance_count=2)
    assert run.code == 0
    *before, one, other = run.notes
    assert sorted([one, other]) == sorted(line.replace("run", "shutdown") for line in set(before))


@pytest.mark.parametrize("shutdown", ["raise OSError", "sys.exit(1)", "time.sleep(60)"])
def test_a_failing_shutdown_does_not_fail_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shutdown: str
) -> None:
    monkeypatch.setattr(executor, "SHUTDOWN", 0.3)
    run = score(tmp_path, f"def run(mini_batch): return mini_batch\n\ndef shutdown():\n    {shutdown}")
    assert run.code == 0
    assert run.summary["rows"] == 4


# --- error_threshold

FIRST_TWO_FAIL = "def run(mini_batch): return mini_batch if name(mini_batch) > '1.jpg' else []"


@pytest.mark.parametrize(
    ("error_threshold", "status", "succeeded", "failed"),
    [(-1, "Completed", 4, 2), (2, "Completed", 4, 2), (1, "Failed", 0, 2), (0, "Failed", 0, 1)],
)
def test_the_job_is_aborted_as_soon_as_failed_files_exceed_the_error_threshold(
    tmp_path: Path, error_threshold: int, status: str, succeeded: int, failed: int
) -> None:
    run = score(tmp_path, FIRST_TWO_FAIL, 6, error_threshold=error_threshold)
    summary = run.summary
    assert (summary["status"], summary["succeeded"], summary["failed"]) == (status, succeeded, failed)
    assert summary["not_scored"] == 6 - succeeded - failed
    assert run.code == (status == "Failed")
    if status == "Failed":
        assert f"{failed} failed files, more than the error_threshold of {error_threshold}. " in run.stderr
        assert f"{failed - 1}.jpg: no row" in run.stderr


def test_rows_that_were_there_when_the_job_is_aborted_are_kept(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        time.sleep(60)
    if name(mini_batch) == "3.jpg":
        raise ValueError
    return mini_batch
"""
    run = score(tmp_path, script, 9, instance_count=2, error_threshold=0)
    assert run.code == 1
    assert run.rows == [str(tmp_path / "data" / "1.jpg"), str(tmp_path / "data" / "2.jpg")]
    assert run.failed == {"3.jpg": "run() raised ValueError:"}
    assert run.summary["not_scored"] == 6


def test_a_job_in_which_no_file_succeeded_has_failed_even_at_minus_one(tmp_path: Path) -> None:
    run = score(tmp_path, "def run(mini_batch): logging.error('%s: no good', mini_batch[0]); return []", 2)
    last = tmp_path / "data" / "1.jpg"
    cause = f"No succeeded mini batch item returned from run(). The last: {last}: {last}: no good"
    assert run.code == 1
    assert run.summary["cause"] == cause
    assert (tmp_path / "output" / "logs" / "job_error.txt").read_text() == cause + "\n"
    assert run.summary["failed"] == 2
