"""deploy-and-run.sh in a small copy of the sample, beside an az that only writes down what it is asked.

The fixtures, for the test modules that import them: `folder` is the copy, `programs` a folder for PATH with
nothing but what the script uses, `environment` the variables; `run` runs the script.
"""

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("deploy-and-run.sh", "deploy-and-run-checks.sh")
PROGRAMS = "bash awk cp find grep mkdir mv rm sed sleep sort tail unzip"  # cp: for a curl of a test

PREDICTIONS = 'n02_b.JPEG 1 0.25\\n"a ""b"" c.JPEG" 2 5e-05\\nn01_a.JPEG 0 1.0\\n'
LABELS = "background\ntench, Tinca tinca\ngoldfish\n"

SCORING_SCRIPT = """
import os
from pathlib import Path

def init():
    global labels
    folder = Path(os.environ["AZUREML_MODEL_DIR"])
    labels = next(folder.glob("*/ImageNetLabels.txt")).read_text().splitlines()

def run(mini_batch):
    return [f"{Path(path).name} {len(Path(path).read_bytes()) % len(labels)} 0.5" for path in mini_batch]
"""


def write_zip(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path) -> Path:
    """A copy of the sample: its own script and YAML files, a tiny model, tiny data and scoring scripts."""
    folder = tmp_path / "sample"
    (folder / "environment").mkdir(parents=True)
    for name in (*SCRIPTS, "environment/conda.yml", *[path.name for path in ROOT.glob("*.yml")]):
        shutil.copy(ROOT / name, folder / name)
    for name in ("score-by-file", "score-by-batch"):
        (folder / "code" / name).mkdir(parents=True)
        (folder / "code" / name / "batch_driver.py").write_text(SCORING_SCRIPT, encoding="utf-8")
    write_zip(folder / "model.zip", {"model/ImageNetLabels.txt": LABELS, "model/saved_model.pb": "weights"})
    write_zip(folder / "imagenet-1000.zip", {f"n{number:02}.JPEG": "x" * number for number in range(12)})
    return folder


@pytest.fixture(name="programs")
def make_programs(tmp_path: Path) -> Path:
    """A folder for PATH with nothing but what the script uses, and the recording az."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in PROGRAMS.split():
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    shutil.copy(ROOT / "tests/recording-az.sh", folder / "az")
    write_program(folder, "wget", '#!/usr/bin/env bash\necho "$*" >> wget-was-called\nexit 1\n')
    return folder


@pytest.fixture(name="environment")
def make_environment(tmp_path: Path, programs: Path) -> dict[str, str]:
    commands = tmp_path / "commands.txt"
    commands.touch()
    return {"PATH": str(programs), "AZ_COMMANDS": str(commands), "AZ_PREDICTIONS": PREDICTIONS}


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(name="run")
def make_run(folder: Path, environment: dict[str, str]) -> Run:
    """Run the script with the recording az; variables as keywords."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command, env = ["bash", "./deploy-and-run.sh", *arguments], environment | variables
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run


def commands(environment: dict[str, str], verb: str = "") -> list[str]:
    lines = Path(environment["AZ_COMMANDS"]).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(verb)]
