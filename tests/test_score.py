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
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_executor import Run, is_alive, read_notes, score, wait_until, write_deployment

from local_workspace import score as score_module
from local_workspace.__main__ import main

ROWS = "def run(mini_batch): return mini_batch"
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


# --- what a worker finds


NOTE_ENVIRONMENT = "import json\n\ndef init(): note(json.dumps(dict(os.environ)))\n\n" + ROWS
# What Azure sets, what the caller's environment is asked for, and the share of the processors.
AZURE = {"AZUREML_RUN_ID", "AZUREML_MODEL_DIR", "AZUREML_BI_OUTPUT_PATH", "CUDA_VISIBLE_DEVICES"}
INHERITED = {"PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV"}
OURS = {
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
}


def test_a_worker_gets_its_own_environment_and_none_of_the_callers_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_CLIENT_SECRET", "AZUREML_ARM_SUBSCRIPTION", "PYTHONPATH", "http_proxy"):
        monkeypatch.setenv(name, "/secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    variables = {"DEVICE_BATCH_SIZE": "16", "EMPTY": "", "TZ": "UTC", "WITH": "a = b\n\u00fc"}
    run = score(tmp_path, NOTE_ENVIRONMENT, environment_variables=variables)
    environment = json.loads(run.notes[0])
    assert environment.items() >= variables.items(), "the deployment's come last"
    assert environment.keys() - variables.keys() >= AZURE | {"PATH"}
    assert (
        environment.keys()
        <= AZURE | INHERITED | OURS | {"CONDA_PREFIX", "LD_LIBRARY_PATH"} | variables.keys()
    )
    assert "/secret" not in environment.values()
    assert environment["AZUREML_BI_OUTPUT_PATH"] == str(tmp_path / "output" / "score")
    assert re.fullmatch(r"[0-9a-f-]{36}", environment["AZUREML_RUN_ID"])


def test_every_worker_of_a_job_has_its_run_id_and_another_gpu_as_far_as_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    script = """
def run(mini_batch):
    note(f"{os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES'] or '-'} {os.environ['AZUREML_RUN_ID']}")
    wait_until(lambda: len(set(notes())) == 3)
    return mini_batch
"""
    run = score(tmp_path, script, 3, instance_count=3)
    _, gpus, run_ids = zip(*(line.split() for line in run.notes))
    assert sorted(gpus) == ["-", "5", "7"]
    assert len(set(run_ids)) == 1


NOTE_MODEL = (
    """
from pathlib import Path

def init():
    folder = Path(os.environ["AZUREML_MODEL_DIR"])
    for path in sorted(folder.rglob("*")):
        note(f"{path.relative_to(folder)} {path.read_text() if path.is_file() else 'folder'}")

"""
    + ROWS
)


def test_a_registered_folder_keeps_its_last_name_below_the_model_dir(tmp_path: Path) -> None:
    model = tmp_path / "somewhere" / "resnet"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_text("graph")
    (model / "variables" / "data").write_text("weights")
    (model / "itself").symlink_to(".")
    run = score(tmp_path, NOTE_MODEL, arguments=["--model", f"{model}/variables/.."])
    assert run.notes == [
        "resnet folder",
        "resnet/itself folder",
        "resnet/saved_model.pb graph",
        "resnet/variables folder",
        "resnet/variables/data weights",
    ]
    assert (model / "variables" / "data").read_text() == "weights", "the user's own model stays"


def test_a_model_folder_may_hold_the_output(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert score(tmp_path, ROWS, 1, ["--output", str(tmp_path / "model" / "output")]).code == 0
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["output"]


def test_a_registered_file_lies_in_the_model_dir(tmp_path: Path) -> None:
    (tmp_path / "resnet.keras").write_text("weights")
    run = score(tmp_path, NOTE_MODEL, arguments=["--set", "model.path=resnet.keras"])
    assert run.notes == ["resnet.keras weights"]


def test_a_script_may_parse_arguments_of_its_own(tmp_path: Path) -> None:
    script = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--confidence", type=float, default=0.5)
arguments, others = parser.parse_known_args()

def run(mini_batch):
    assert len(sys.argv) > 1
    return [arguments.confidence] if others else []
"""
    assert score(tmp_path, script, 1).rows == ["0.5"]


def test_modules_beside_the_script_can_be_imported_and_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "scripts").mkdir(parents=True)
    (tmp_path / "code" / "scripts" / "crop.py").write_text("SIDE = 224")
    (tmp_path / "code" / "labels.py").write_text("LABELS = 1001")
    (tmp_path / "code" / "scripts" / "score.py").write_text("""
import importlib
import pickle
import crop, labels

class Settings:
    pass

def init():
    for name in ("errors", "store", "listing", "worker", "executor"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise ImportError(f"{name} can be imported")

def run(mini_batch):
    pickle.dumps(Settings())  # needs the script in sys.modules
    return [crop.SIDE + labels.LABELS]
""")
    monkeypatch.chdir(ROOT / "local_workspace")  # where `import errors` works
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "local_workspace"))
    run = score(tmp_path, "", 1, ["--set", "code_configuration.scoring_script=scripts/score.py"])
    assert run.rows == ["1225"], run.stderr


# --- what is left behind


def test_the_logs_have_the_names_they_have_in_azure(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("driver").debug("to the log")
    raise ValueError("to the error log")
"""
    run = score(tmp_path, script, 2, logging_level="debug")
    logs = tmp_path / "output" / "logs"
    files = {
        path.relative_to(logs).as_posix(): path.read_text() for path in logs.rglob("*") if path.is_file()
    }
    overview, *others = sorted(files, key=lambda name: (not name.startswith("job_progress"), name))
    assert re.fullmatch(r"job_progress_overview\.\d{14}\.txt", overview)
    assert others == [
        "job_error.txt",
        "job_result.txt",
        "sys/job_report/processed_mini-batches.csv",
        "user/entry_script_log/instance0/process000.log.txt",
        "user/error/instance0/process000.error.txt",
        "user/stderr/instance0/process000.stderr.txt",
        "user/stdout/instance0/process000.stdout.txt",
    ]
    assert "instance0 process000: ready\n" in files[overview]
    assert run.summary["cause"] + "\n" == files["job_error.txt"]
    assert files["job_result.txt"].startswith("status: Failed\ncause: No succeeded")
    assert "DEBUG driver: to the log\n" in files["user/entry_script_log/instance0/process000.log.txt"]
    assert "ValueError: to the error log\n" in files["user/error/instance0/process000.error.txt"]
    assert files["user/stderr/instance0/process000.stderr.txt"].count("to stderr\n") == 2
    assert files["user/stdout/instance0/process000.stdout.txt"] == "to stdout\nto stdout\n"


@pytest.mark.parametrize(("level", "found"), [("info", ["INFO", "WARNING"]), ("warning", ["WARNING"])])
def test_the_logging_level_is_the_deployments(tmp_path: Path, level: str, found: list[str]) -> None:
    script = "def run(mini_batch):\n    for level in (10, 20, 30): logging.log(level, 'x')\n    return [1]"
    score(tmp_path, script, 1, logging_level=level)
    log = tmp_path / "output" / "logs" / "user" / "entry_script_log" / "instance0" / "process000.log.txt"
    assert re.findall("DEBUG|INFO|WARNING", log.read_text()) == found


def test_the_summary_accounts_for_every_file(tmp_path: Path) -> None:
    script = "def run(mini_batch): return mini_batch if name(mini_batch) != '1.jpg' else []"
    run = score(tmp_path, script, 5, mini_batch_size=1, error_threshold=0)
    summary = run.summary
    assert (summary["files"], summary["mini_batches"], summary["processed"]) == (5, 5, 2)
    assert (summary["succeeded"], summary["failed"], summary["not_scored"]) == (1, 1, 3)
    assert summary["rows"] == 1 == len(run.rows)
    assert summary["seconds"] >= summary["seconds_scoring"] >= 0
    assert "Failed: 5 files = 1 scored + 1 failed + 3 not scored; 1 rows" in run.stderr
    assert Path(run.stdout.strip()) == tmp_path / "output" / "score" / "predictions.csv"


def test_the_output_file_has_the_name_that_the_deployment_gives_it(tmp_path: Path) -> None:
    run = score(tmp_path, ROWS, output_file_name="classes.txt")
    assert [path.name for path in (tmp_path / "output" / "score").iterdir()] == ["classes.txt"]
    assert run.stdout.endswith("/score/classes.txt\n")


def test_an_existing_output_is_refused_and_overwritten_when_asked(tmp_path: Path) -> None:
    first = score(tmp_path, ROWS, 4)
    refused = score(tmp_path, "def run(mini_batch): return [1]", 4)
    assert refused.code == 2
    assert "predictions.csv: exists already\n\nhint: " in refused.stderr
    assert "--overwrite" in refused.stderr
    assert len(first.rows) == 4, "untouched"
    again = score(tmp_path, "def run(mini_batch): return [1]", 4, ["--overwrite"])
    assert again.code == 0
    assert again.rows == 4 * ["1"]
    assert len(list((tmp_path / "output" / "logs").glob("job_progress_overview.*"))) == 1


@pytest.mark.parametrize("mistake", ["--data", "--model"])
def test_nothing_is_overwritten_before_the_input_is_found_good(tmp_path: Path, mistake: str) -> None:
    first = score(tmp_path, ROWS, 4)
    run = score(tmp_path, ROWS, 4, ["--overwrite", mistake, str(tmp_path / "nowhere")])
    assert run.code == 2
    assert len(first.rows) == 4
    assert first.summary["status"] == "Completed"


@pytest.mark.parametrize("action", ["append_row", "summary_only"])
def test_what_is_no_result_of_ours_stays_in_the_output_folder(tmp_path: Path, action: str) -> None:
    (tmp_path / "output" / "score").mkdir(parents=True)
    for path in (tmp_path / "output" / "notes.txt", tmp_path / "output" / "score" / "other.csv"):
        path.write_text("mine")
    assert score(tmp_path, ROWS, 4, ["--overwrite"], output_action=action).code == 0
    assert (tmp_path / "output" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "output" / "score" / "other.csv").read_text() == "mine"


def test_the_output_goes_to_a_folder_of_the_deployments_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = write_deployment(tmp_path, ROWS, 1)
    monkeypatch.chdir(tmp_path)
    assert main(["score", str(deployment), "--data", "data"]) == 0
    assert (tmp_path / "outputs" / "classifier" / "score" / "predictions.csv").is_file()


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
    monkeypatch.setattr(score_module, "PLAIN_PROGRESS", 0)
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
