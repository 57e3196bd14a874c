"""Setups that differ from the usual one: paths, the interpreter's options, what lies in the user's home."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from score_runs import ROOT, command, score, write_deployment

ROWS = "def run(mini_batch): return [os.path.basename(path) for path in mini_batch]"
READS = """
def run(mini_batch):
    rows = []
    for path in mini_batch:
        try:
            open(path).close()
        except OSError as error:
            logging.warning("%s: left out: %s", path, error.strerror)
        else:
            rows.append(os.path.basename(path))
    return rows
"""


def test_a_file_whose_path_is_longer_than_the_system_takes_has_failed_and_no_other(tmp_path: Path) -> None:
    write_deployment(tmp_path, READS, 2, mini_batch_size=2)
    here = os.open(tmp_path / "data", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        here, above = os.open("d" * 250, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    for name in ("deep.jpg", "deeper.jpg"):
        os.close(os.open(name, os.O_CREAT, dir_fd=here))
    os.close(here)
    run = score(tmp_path, READS, 2, mini_batch_size=2)
    assert (run.code, run.rows) == (0, ["0.jpg", "1.jpg"])
    assert run.failed.keys() == {"deep.jpg", "deeper.jpg"}
    assert all(reason.endswith(": left out: File name too long") for reason in run.failed.values())
    assert "left out\n" not in run.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no names that are not UTF-8")
def test_names_that_are_not_utf_8_are_as_good_as_others_for_the_output(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    folder = os.environb[b"AZUREML_BI_OUTPUT_PATH"]
    open(os.path.join(folder, b"r\\xe9sum\\xe9"), "w").close()
    return mini_batch
"""
    write_deployment(tmp_path, script, 2, output_action="summary_only")
    output = os.fsencode(tmp_path) + b"/out\xe9"
    words = [*command(tmp_path)[:-1], output]
    for way in ([], ["--resume"], ["--overwrite"], ["--resume"]):
        strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        job = subprocess.run([*words, *way], cwd=ROOT, env=strict, capture_output=True, timeout=60)
        assert (job.returncode, job.stdout) == (0, output + b"/score\n"), job.stderr
    assert os.listdir(output + b"/score") == [b"r\xe9sum\xe9"]


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_python_may_leave_assertions_and_docstrings_out(tmp_path: Path, option: str) -> None:
    write_deployment(tmp_path, ROWS, 2)
    python, *words = command(tmp_path)
    job = subprocess.run([python, option, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (job.returncode, "Traceback" in job.stderr) == (0, False)
    for verb in ("run", "samples", "score", "serve", "show", "state", "sweep"):
        words = [python, option, "-m", "local_workspace", verb, "--help"]
        told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize(
    ("found", "variables", "warns"),
    [
        ('{"backend": "jax"}', {}, True),
        ('{"backend": "jax"}', {"KERAS_BACKEND": "jax"}, False),
        ('{"backend": "tensorflow"}', {}, False),
        ("{}", {}, False),
        ("not JSON", {}, False),
        ("[]", {}, False),
        (None, {}, False),
    ],
)
def test_a_backend_of_keras_that_azure_would_not_have_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | None, variables: dict[str, str], warns: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if found is not None:
        (tmp_path / ".keras").mkdir()
        (tmp_path / ".keras" / "keras.json").write_text(found)
    run = score(tmp_path, ROWS, 1, environment_variables=variables)
    assert run.code == 0
    assert (f"{tmp_path}/.keras/keras.json gives Keras the backend 'jax'" in run.stderr) == warns
    assert json.dumps("KERAS_BACKEND")[1:-1] in run.stderr or not warns


def test_az_has_its_help_though_python_is_to_leave_docstrings_out(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "local_workspace", "run", "--state", tmp_path / "state", "--", "az", "ml"]
    told = subprocess.run(
        [*words, "model", "create", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert "az ml model create : " in told.stdout
