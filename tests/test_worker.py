"""What a worker finds around it, and what `score` leaves behind."""

import json
import re
from pathlib import Path

import pytest
from score_runs import ROOT, score, write_deployment

from local_workspace.__main__ import main

ROWS = "def run(mini_batch): return mini_batch"
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
