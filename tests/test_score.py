"""The command line `score`: what a worker finds around it, what is left behind, exit codes and signals."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from score_runs import (
    ROOT,
    Run,
    command,
    is_alive,
    read_notes,
    run_command,
    score,
    scoring,
    wait_until,
    write_deployment,
)

from local_workspace import progress
from local_workspace.__main__ import main

ROWS = "def run(mini_batch): return mini_batch"
# --- any file there can be

NAMES = [
    b"-n",
    b"--data",
    b" lead and trail ",
    b'say "hi".jpg',
    b"it's.jpg",
    b"two\nlines.jpg",
    b"tab\t.jpg",
    b"back\\slash.jpg",
    "\u00fc\u1f600.jpg".encode(),
    b"r\xe9sum\xe9.jpg",
    b"%d %s.jpg",
    b"#.jpg",
    b"n" * 251 + b".jpg",
]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no names that are not UTF-8")
def test_any_name_arrives_as_it_is_and_comes_back_as_it_was(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    assert all(os.path.isfile(path) for path in mini_batch)
    logging.error("%s", mini_batch[0])
    return [repr(os.fsencode(path)) for path in mini_batch[1:]]
"""
    data = tmp_path / "data" / "a folder"
    data.mkdir(parents=True)
    for name in NAMES:
        (data / os.fsdecode(name)).touch()
    run = score(tmp_path, script, 0, mini_batch_size=99)
    paths = sorted(str(path).encode("utf-8", "surrogateescape") for path in data.iterdir())
    assert run.rows == [repr(path) for path in paths[1:]]
    assert run.summary["failed"] == 1
    raw = score(tmp_path, ROWS, 0, ["--overwrite"], mini_batch_size=99)
    assert raw.predictions == b"".join(path + b"\n" for path in paths)
    failing = score(tmp_path, "def run(mini_batch): raise OSError(mini_batch)", 0, ["--overwrite"])
    assert failing.code == 1
    text = (tmp_path / "output" / "failed.csv").read_bytes()
    assert text.count(b"r\xe9sum\xe9.jpg") == 1


def test_half_a_pair_of_surrogates_in_rows_or_errors_stops_nothing(tmp_path: Path) -> None:
    script = r"""
def run(mini_batch):
    if name(mini_batch) == "1.jpg":
        raise ValueError("\ud83d in an error")
    return ["\ud83d in a row"]
"""
    run = score(tmp_path, script, 2)
    assert run.code == 0
    assert run.rows == [r"\ud83d in a row"]
    assert run.failed == {"1.jpg": r"run() raised ValueError: \ud83d in an error"}


def test_what_is_no_file_is_left_out_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_deployment(tmp_path, ROWS, 1)
    data = tmp_path / "data"
    monkeypatch.chdir(data)  # the address of a socket is short
    os.mkfifo("fifo")
    (data / "nowhere").symlink_to("gone")
    (data / "to itself").symlink_to("to itself")
    (data / "link.jpg").symlink_to("0.jpg")
    for number in range(3):
        (data / f"folder{number}").symlink_to(tmp_path / "model")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    run = run_command(tmp_path)
    assert run.rows == [str(data / "0.jpg"), str(data / "link.jpg")]
    warnings = [line for line in run.stderr.splitlines() if "left out" in line]
    assert warnings == [
        *(f"warning: {data / name}: not a file, left out" for name in ("fifo", "folder0", "folder1")),
        *(f"warning: {data / name}: not a file, left out" for name in ("folder2", "nowhere")),
        "warning: 2 more that are not files, left out",
    ]


def test_the_data_may_be_a_single_file(tmp_path: Path) -> None:
    photo = tmp_path / "data" / "0.jpg"
    assert score(tmp_path, ROWS, 3, ["--data", str(photo)]).rows == [str(photo)]


# --- progress and warnings


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN", 0)
    run = score(tmp_path, "def run(mini_batch): return [1] if name(mini_batch) != '0.jpg' else []", 3)
    assert "classifier: files: 3, mini-batches: 3, workers: 1\n" in run.stderr
    assert re.search(r"^3 of 3 files, \d+\.\d/s, 1 failed$", run.stderr, re.MULTILINE)
    assert "\x1b" not in run.stderr
    assert "\r" not in run.stderr


def test_progress_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch): time.sleep(0.2); return [1]", 3)
    terminal, stderr = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as output:
        job = subprocess.Popen(
            command(tmp_path),
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        os.close(stderr)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while more := output.read(1 << 16):
                shown += more
    assert job.wait(120) == 0
    assert b"3/3" in shown
    assert b"0 failed" in shown
    assert b"Completed: 3 files = 3 scored + 0 failed; 3 rows" in shown


def test_settings_that_are_not_honoured_are_named(tmp_path: Path) -> None:
    deployment = write_deployment(tmp_path, ROWS, 1)
    values = json.loads(deployment.read_text())
    values |= {
        "model": "azureml:resnet@latest",
        "environment": "azureml:tensorflow@latest",
        "resources": {"instance_count": 1, "shm_size": "2g"},
        "error_threshold": 3,
        "environment_variables": {"A": "b"},
    }
    deployment.write_text(json.dumps(values))
    run = run_command(tmp_path)
    assert run.code == 0
    found = [line for line in run.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.removeprefix("warning: ").split()[0] for line in found] == [
        "environment",
        "compute",
        "resources.shm_size",
        "model",
        "environment_variables",
        "error_threshold",
    ]


def test_settings_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    changes = ["settings.mini_batch_size=2", "settings.environment_variables.SIZE=007"]
    arguments = [part for change in changes for part in ("--set", change)]
    run = score(tmp_path, "def run(mini_batch): return [os.environ['SIZE'], len(mini_batch)]", 4, arguments)
    assert run.rows == ["007", "2", "007", "2"]


# --- exit codes: 0 and 1 are all over the other tests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such folder, expected the files to score"),
        (["--data", "empty"], "empty: no files to score in it"),
        (["--data", "n" * 300], ": no such folder"),
        (["--data", "fifo"], "fifo: cannot be read: Not a directory"),
        (["--model", "nowhere"], "nowhere: no such model, expected a folder or a file"),
        (["--model", "n" * 300], ": no such model"),
        (["--output", "deployment.yml"], "deployment.yml: cannot be written: "),
        (["--output", "n" * 300], ": cannot be written: "),
        (["--set", "settings.mini_batch_size=0"], "settings.mini_batch_size is 0, expected a whole number"),
        (["--set", "nonsense"], "--set nonsense: expected KEY=VALUE"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty" / "within").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    run = score(tmp_path, ROWS, 1, arguments)
    assert run.code == 2
    assert message in run.stderr
    assert run.stderr.splitlines()[-1].startswith(("error: ", "hint: "))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file, expected a deployment's YAML"),
        ("name:\tclassifier", "not readable as YAML: while scanning for the next token found character"),
        ("name: classifier\nmini_batch: 5", "unknown key mini_batch, expected one of: "),
        ("name: [a]\ntype: model", "name is ['a'], expected a text"),
        ("type: pipeline", "type is 'pipeline', expected model"),
    ],
)
def test_a_wrong_deployment_is_exit_code_2_and_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    deployment = tmp_path / "deployment.yml"
    if text is not None:
        deployment.write_text(text)
    assert main(["score", str(deployment), "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {deployment}: {message}")


def test_the_process_exits_with_the_code_and_shows_no_traceback(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch): return []", 1)
    (tmp_path / "empty").mkdir()
    failed = run_command(tmp_path)
    empty = run_command(tmp_path, "--overwrite", "--data", tmp_path / "empty")
    assert (failed.code, empty.code, run_command(tmp_path, "--nonsense").code) == (1, 2, 2)
    for run in (failed, empty):
        assert "\nerror: " in run.stderr
        assert "\n\nhint: " in run.stderr
        assert "Traceback" not in run.stderr


# --- signals

SECOND_IS_DONE_FIRST_IS_NOT = """
def init():
    note(f"worker {os.getpid()}")

def run(mini_batch):
    if name(mini_batch) == "1.jpg":
        return mini_batch
    note(f"child {subprocess.Popen(['sleep', '60']).pid}")
    time.sleep(60)
"""


def started(folder: Path) -> list[int]:
    """The processes of SECOND_IS_DONE_FIRST_IS_NOT, all four; none while they have not all started."""
    wait_until(lambda: len(read_notes(folder)) == 4)
    return [int(line.split()[1]) for line in read_notes(folder)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with scoring(tmp_path, SECOND_IS_DONE_FIRST_IS_NOT, 5, instance_count=2) as job:
        processes = started(tmp_path)
        job.send_signal(number)
        stdout, stderr = job.communicate(timeout=120)
    assert job.returncode == 130
    run = Run(job.returncode, tmp_path, stdout, stderr)
    assert run.rows == [str(tmp_path / "data" / "1.jpg")], "the rows so far are kept"
    assert "Canceled: 5 files = 1 scored + 0 failed + 4 not scored; 1 rows" in stderr
    assert "Traceback" not in stderr
    assert (run.summary["status"], run.summary["not_scored"]) == ("Canceled", 4)
    wait_until(lambda: not any(map(is_alive, processes)))


def test_no_worker_is_left_over_when_the_executor_is_killed(tmp_path: Path) -> None:
    with scoring(tmp_path, SECOND_IS_DONE_FIRST_IS_NOT, 5, instance_count=2) as job:
        processes = started(tmp_path)
        assert all(map(is_alive, processes))
        job.kill()
        wait_until(lambda: not any(map(is_alive, processes)))


def test_a_second_signal_ends_the_job_at_once(tmp_path: Path) -> None:
    script = ROWS + "\n\ndef shutdown():\n    note(f'worker {os.getpid()}')\n    time.sleep(60)"
    with scoring(tmp_path, script, 2) as job:
        wait_until(lambda: read_notes(tmp_path))
        job.send_signal(signal.SIGINT)
        job.send_signal(
            signal.SIGTERM
        )  # another one: two of a kind become one where nobody has looked between
        _, stderr = job.communicate(timeout=120)
    assert job.returncode == 130, "after one signal, or none, this job would have completed"
    assert "Traceback" not in stderr
    wait_until(lambda: not is_alive(int(read_notes(tmp_path)[0].split()[1])))
