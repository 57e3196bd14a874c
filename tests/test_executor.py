"""The rules of Azure ML's batch executor, each with a small scoring script of its own."""

import contextlib
import csv
import io
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from local_workspace import executor, worker
from local_workspace.__main__ import main
from local_workspace.deployment import Deployment
from local_workspace.executor import Executor
from local_workspace.instance import Job
from local_workspace.job_logs import JobLogs
from local_workspace.journal import Counts, Journal

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


def test_each_kind_of_result_gives_its_exact_bytes(tmp_path: Path) -> None:
    script = """
import numpy, pandas

def run(mini_batch):
    return {
        "array": numpy.array([1.5, 2]),
        "columns": pandas.DataFrame(columns=["file"]),
        "empty": pandas.DataFrame(),
        "frame": pandas.DataFrame({
            "file": ["plain.jpg", "a b.jpg", 'say "hi".jpg', "two\\nlines.jpg", "r\\udce9sum\\udce9.jpg"],
            "class": [0, 1, 2, 3, 4],
            "probability": [0.5, 1 / 3, None, 1e-9, 1],
        }, index=list("edcba")),
        "list": ["text, with a comma", 7, 0.25, None, ("a", 1), {"b": [2]}],
        "tuple": ("a b", b"c"),
        "zero": [],
    }[name(mini_batch)]
"""
    run = score(tmp_path, script, ["array", "columns", "empty", "frame", "list", "tuple", "zero"])
    assert run.predictions == (
        b"1.5\n2.0\n"
        b'plain.jpg 0 0.5\n"a b.jpg" 1 0.3333333333333333\n"say ""hi"".jpg" 2 \n'
        b'"two\nlines.jpg" 3 1e-09\nr\xe9sum\xe9.jpg 4 1.0\n'
        b"text, with a comma\n7\n0.25\nNone\n('a', 1)\n{'b': [2]}\n"
        b"a b\nb'c'\n"
    )
    assert run.failed.keys() == {"columns", "empty", "zero"}
    columns = ["file", "class", "probability"]  # as the article reads it
    (tmp_path / "frame.csv").write_bytes(b"".join(run.predictions.splitlines(keepends=True)[2:7]))
    read = pd.read_csv(tmp_path / "frame.csv", sep=" ", names=columns)
    assert list(read["file"]) == ["plain.jpg", "a b.jpg", 'say "hi".jpg', "two\nlines.jpg"]
    assert list(read["class"]) == [0, 1, 2, 3]


def test_a_result_of_any_other_type_fails_the_mini_batch_and_is_named(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    results = {"None": None, "dict": {"a": 1}, "generator": (path for path in mini_batch), "str": "row"}
    return results.get(name(mini_batch), mini_batch)
"""
    run = score(tmp_path, script, ["None", "dict", "generator", "str", "good"])
    expected = "run() returned {}, expected a list, tuple, array or DataFrame"
    assert run.failed == {
        name: f"run() raised TypeError: {expected.format(kind)}"
        for name, kind in {"None": "NoneType", "dict": "dict", "generator": "generator", "str": "str"}.items()
    }
    assert run.rows == [str(tmp_path / "data" / "good")]


def test_a_series_is_refused_and_an_array_without_a_length_too(tmp_path: Path) -> None:
    script = """
import numpy, pandas

def run(mini_batch):
    return {"array": numpy.array(1), "good": [1], "series": pandas.Series([1])}[name(mini_batch)]
"""
    run = score(tmp_path, script, ["array", "good", "series"])
    assert "len() of unsized object" in run.failed["array"]
    assert "returned Series" in run.failed["series"]


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


# --- counting


def test_fewer_rows_are_failed_files_each_with_its_reason_from_the_log(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    logging.warning("%d", "a message that cannot be formatted costs nothing")
    logging.info("2.jpg: nothing to see")
    logging.warning("12.jpg: truncated")
    logging.error("2.jpg: cannot\\nbe read")
    return [(path, 1) for path in mini_batch if os.path.basename(path) in ("1.jpg", "4.jpg")]
"""
    names = ["1.jpg", "12.jpg", "2.jpg", "3.jpg", "4.jpg"]
    run = score(tmp_path, script, names, mini_batch_size=9)
    assert run.failed == {
        "12.jpg": "12.jpg: truncated",
        "2.jpg": "2.jpg: cannot\nbe read",
        "3.jpg": "no row, and nothing in the log names it",
    }
    assert [run.summary[key] for key in ("files", "succeeded", "failed", "rows")] == [5, 2, 3, 2]
    assert run.code == 0
    assert "failed files and why: " in run.stderr


def test_the_reason_is_from_the_attempt_that_counts(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    note("tried")
    logging.warning("0.jpg: try %d", len(notes()))
    assert len(notes()) > 1
    return ["1.jpg"]
"""
    run = score(tmp_path, script, 2, mini_batch_size=2, retry_settings={"max_retries": 2})
    assert run.failed == {"0.jpg": "0.jpg: try 2"}


def test_fewer_rows_that_do_not_name_their_files_are_counted_as_unknown(tmp_path: Path) -> None:
    run = score(tmp_path, "def run(mini_batch): return [0.5]", 3, mini_batch_size=3)
    assert run.failed == {"one of 0.jpg ... 2.jpg": "no row, and the rows do not name their files"}
    assert [run.summary[key] for key in ("succeeded", "failed", "rows")] == [1, 2, 1]


@pytest.mark.parametrize(
    "result",
    [
        ["/data/a.jpg 7 0.5"],
        ["a.jpg"],
        [["a.jpg", 7]],
        [{"file": "a.jpg"}],
        pd.DataFrame({"class": [7], "file": ["a.jpg"]}),
        pd.DataFrame({"file": ["a.jpg"]}).to_numpy(),
    ],
)
def test_a_row_names_its_file_by_name_or_path_in_any_kind_of_result(result: object) -> None:
    missing = worker.explain(1, ["/data/a.jpg", "/data/b.jpg"], result, worker.deque(["b.jpg: broken"]))
    assert missing == [("/data/b.jpg", "b.jpg: broken")]


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        (["a b.jpg 3"], "/data/b.jpg"),
        (["b.jpg 3"], "/data/a b.jpg"),
        (["7: /data/a b.jpg"], "/data/b.jpg"),
        ([("a b.jpg", 3)], "/data/b.jpg"),
    ],
)
def test_a_row_is_about_the_longest_name_in_it(rows: list, failed: str) -> None:
    found = worker.explain(1, ["/data/a b.jpg", "/data/b.jpg"], rows, worker.deque())
    assert found == [(failed, "no row, and nothing in the log names it")]


def test_more_rows_than_files_are_kept_and_the_files_counted_once(tmp_path: Path) -> None:
    run = score(tmp_path, "def run(mini_batch): return [1, 2, 3]", 2, mini_batch_size=2)
    assert run.rows == ["1", "2", "3"]
    assert [run.summary[key] for key in ("succeeded", "failed", "rows")] == [2, 0, 3]


def test_every_file_of_a_mini_batch_that_raised_has_failed(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        raise ValueError("no\\ngood")
    return mini_batch
"""
    run = score(tmp_path, script, 4, mini_batch_size=3)
    assert run.failed == {f"{number}.jpg": "run() raised ValueError: no good" for number in range(3)}
    assert run.rows == [str(tmp_path / "data" / "3.jpg")]
    error_log = tmp_path / "output" / "logs" / "user" / "error" / "instance0" / "process000.error.txt"
    assert 'raise ValueError("no\\ngood")' in error_log.read_text()


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


def overview(run: Run) -> str:
    (path,) = (run.folder / "output" / "logs").glob("job_progress_overview.*.txt")
    return path.read_text()


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


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("sys.exit()", "exit code 0"),
        ("os._exit(3)", "exit code 3"),
        ("subprocess.Popen(['sleep', '60'], close_fds=False); os._exit(4)", "exit code 4"),
        ("os.closerange(3, 256); time.sleep(60)", "killed by SIGKILL"),
        ("os.write(ANSWERS, b'not an answer\\n'); time.sleep(60)", "killed by SIGKILL"),
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


# --- output


def test_summary_only_counts_rows_and_leaves_the_output_to_the_script(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    with open(os.path.join(os.environ["AZUREML_BI_OUTPUT_PATH"], name(mini_batch) + ".txt"), "w") as file:
        file.write("a row")
    return mini_batch[1:]
"""
    run = score(tmp_path, script, 4, mini_batch_size=2, output_action="summary_only")
    output = tmp_path / "output" / "score"
    assert sorted(path.name for path in output.iterdir()) == ["0.jpg.txt", "2.jpg.txt"]
    assert [run.summary[key] for key in ("files", "succeeded", "failed", "rows")] == [4, 2, 2, 2]
    assert run.failed.keys() == {"0.jpg", "2.jpg"}
    assert Path(run.stdout.strip()) == output


def test_rows_come_in_the_order_of_the_input_whatever_is_finished_first(tmp_path: Path) -> None:
    script = """
import random

def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        wait_until(lambda: len(notes()) == 8)
    time.sleep(random.random() / 50)
    note(name(mini_batch))
    return [os.path.basename(path) for path in mini_batch]
"""
    run = score(tmp_path, script, 9, instance_count=3)
    assert run.notes[-1] == "0.jpg"
    assert run.rows == [f"{number}.jpg" for number in range(9)]
    first, _ = run.predictions, (tmp_path / "code" / "notes").unlink()
    assert score(tmp_path, script, 9, ["--overwrite"], instance_count=3).predictions == first


# --- memory


def test_a_slow_mini_batch_holds_up_the_others_once_enough_wait_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "WINDOW", 2)
    script = """
def run(mini_batch):
    if name(mini_batch) == "00":
        wait_until(lambda: len(notes()) == 4)
        time.sleep(0.5)
    note(name(mini_batch))
    return mini_batch
"""
    run = score(tmp_path, script, [f"{number:02}" for number in range(40)], instance_count=2)
    assert run.notes.index("00") <= 5, "2 for each worker, and the slow one"
    assert run.summary["rows"] == 40


def peak_memory(folder: Path, files: int) -> int:
    """The most memory, in bytes, that the executor took for a job of so many `files`."""
    folder.mkdir()
    (folder / "driver.py").write_text("def init(): pass\ndef run(mini_batch): return mini_batch")
    deployment = Deployment("classifier", folder, "driver.py", mini_batch_size=100)
    with (folder / "listing").open("w") as listing:
        listing.writelines(json.dumps(f"/data/{number:0100}.jpg") + "\n" for number in range(files))
    job = Job(deployment, "run", folder, folder / "listing", folder, folder / "logs", init_timeout=60)
    journal = folder / "logs" / "journal.csv"
    with (
        Journal(
            folder / "predictions.csv", folder / "failed.csv", journal, Counts(files, files // 100)
        ) as done,
        JobLogs(job.logs) as logs,
    ):
        tracemalloc.start()
        try:
            Executor(job, done, logs, on_progress=lambda counts: None).run()
            assert done.counts.rows == files
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    few = peak_memory(tmp_path / "few", 2_000)
    many = peak_memory(tmp_path / "many", 100_000)  # 10 MB of paths
    assert many < few + 1_000_000
