"""Machines and shells that are not like the author's, where everything has to start all the same."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Served

COMMAND = [sys.executable, "-m", "local_workspace"]
NO_LOCALHOST = """
import socket

def lookup(host, *arguments, look_up=socket.getaddrinfo, **options):
    if host == "localhost":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return look_up(host, *arguments, **options)

socket.getaddrinfo = lookup
"""
# Without the SDK, with it, and with a path that counts from where the command was given.
AZ_COMMANDS = """
az account get-access-token --output none &&
az ml model create --name tiny --path model.txt --query name --output tsv &&
az ml job list --help
"""


def call(*command: str | Path, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {
        name: value for name, value in os.environ.items() if "MAKE" not in name
    }  # not those of `make test`
    variables = own | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


# Python, temporary folder, hosts


def without_docstrings(folder: Path) -> dict[str, str]:
    return {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}


def temporary_folder_of_a_long_name(folder: Path) -> dict[str, str]:
    """A socket's path may have 107 bytes."""
    temporary = folder / ("long" * 30)
    temporary.mkdir()
    return {"TMPDIR": str(temporary)}


def no_localhost(folder: Path) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(NO_LOCALHOST, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.mark.parametrize("setup", [without_docstrings, temporary_folder_of_a_long_name, no_localhost])
def test_az_works_with(setup, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("a model", encoding="utf-8")
    result = call(*COMMAND, "run", "--", "sh", "-c", AZ_COMMANDS, folder=tmp_path, **setup(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tiny\n")
    assert "az ml job list : List the jobs of the workspace" in result.stdout


@pytest.mark.parametrize("verb", ["", "run", "samples", "score", "serve", "show", "state", "sweep"])
def test_a_verb_starts_without_docstrings(verb: str) -> None:
    result = call(sys.executable, "-OO", "-m", "local_workspace", *verb.split(), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m local_workspace {verb}".rstrip())


# The PATH of a command


def test_run_finds_the_programs_of_its_python(tmp_path: Path) -> None:
    told = "import sys; print(sys.executable)"
    variables = {"PATH": "/usr/bin:/bin"}
    result = call(*COMMAND, "run", "--", "python", "-c", told, folder=tmp_path, **variables)
    assert result.stdout == f"{Path(sys.executable).parent / 'python'}\n", result.stderr


def test_a_terminal_that_joins_finds_them_too(served: Served) -> None:
    script = f". {served.folder}/activate && command -v az && command -v python"
    result = call("sh", "-c", script, PATH="/usr/bin:/bin")
    assert result.stdout.split() == [
        str(ROOT / "local_workspace/bin/az"),
        str(Path(sys.executable).parent / "python"),
    ]


# Nobody reads the output


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--help", "score --help", "sweep --help", "state list"])
def test_a_closed_pipe_ends_a_verb_without_a_traceback(
    arguments: str, unbuffered: str, closed_pipe: int, tmp_path: Path
) -> None:
    if arguments == "state list":
        assert call(*COMMAND, "run", "--", "true", folder=tmp_path).returncode == 0
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(
        [*COMMAND, *arguments.split()],
        cwd=tmp_path,
        env=variables,
        stdout=closed_pipe,
        stderr=subprocess.PIPE,
        text=True,
    )
    # argparse swallows what it is told when it prints help at once
    assert result.returncode == (0 if unbuffered and "--help" in arguments else 141)
    assert result.stderr == ""


@pytest.mark.parametrize("setting", ["settings.mini_batch_size=0", "settings.mini_batch_size=1"])
def test_a_closed_pipe_of_messages_ends_a_run_that_can_go_on(
    setting: str, closed_pipe: int, tmp_path: Path
) -> None:
    """One with an error to tell, and one in the middle of its work."""
    (tmp_path / "data").mkdir()
    for number in range(4):
        (tmp_path / "data" / f"{number}.jpg").write_text("x", encoding="utf-8")
    (tmp_path / "code").mkdir()
    script = "def run(mini_batch): return [f'{path} 1 0.5' for path in mini_batch]\n"
    (tmp_path / "code" / "driver.py").write_text(f"def init(): pass\n{script}", encoding="utf-8")
    deployment = {"code_configuration": {"code": "code", "scoring_script": "driver.py"}}
    deployment |= {"name": "d", "endpoint_name": "e", "model": {"path": "data"}}
    (tmp_path / "deployment.yml").write_text(json.dumps(deployment), encoding="utf-8")
    score = [*COMMAND, "score", tmp_path / "deployment.yml", "--data", tmp_path / "data"]
    score += ["--output", tmp_path / "output", "--set"]
    result = subprocess.run([*score, setting], cwd=ROOT, stdout=subprocess.PIPE, stderr=closed_pipe)
    assert (result.returncode, result.stdout) == (141, b"")
    again = call(*score, "settings.mini_batch_size=1", "--resume")
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "output" / "score" / "predictions.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("command", ["--version", "account show", "ml --help", "ml model list"])
def test_a_closed_pipe_ends_az_without_a_traceback(command: str, closed_pipe: int, served: Served) -> None:
    az = ROOT / "local_workspace/bin/az"
    result = subprocess.run(
        [az, *command.split()],
        env=served.environment,
        stdout=closed_pipe,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    # knack takes no notice of it where an answer is written at once (PYTHONUNBUFFERED)
    assert result.returncode in (0, 141)
    assert result.stderr == ""


# make


@pytest.mark.parametrize("python", ["nopython", "true", "cat", "", "a program"])
def test_make_says_what_is_no_python(python: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(), encoding="utf-8")
    (tmp_path / "pyproject.toml").touch()
    result = call("make", "run", folder=tmp_path, PYTHON=python)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(
        f"error: PYTHON={python} is no Python, expected Python 3.10 to 3.13\n"
        "\nhint: make run PYTHON=python3.11\n"
    )
    assert not (tmp_path / ".venv").exists()
