"""State folders that cannot be used: what is wrong with them is said, and no traceback."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from local_workspace.store import Store

# What `serve`, and `run` through it, do with a state folder; and `state`. Root may do everything, so it is
# another user who tries, in a process that has read the code before.
AS_ANOTHER = """
import argparse, atexit, os, sys
from pathlib import Path
from local_workspace import __main__ as command_line, dispatch, serve, state
from local_workspace.errors import UserError
from local_workspace.store import Store
from local_workspace.workspace import Workspace

verb, folder = sys.argv[1], Path(sys.argv[2])
atexit._clear()  # coverage would write what it measured to a folder of root's
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
if verb != "serve":
    sys.exit(command_line.main(["state", "--state", str(folder), verb]))
try:
    state = serve.state_folder(argparse.Namespace(state=folder))
    dispatch.Server(Workspace(Store(state), None, None, ""), state / "access.log")
except UserError as error:
    sys.exit(f"error: {error.message}\\n\\nhint: {error.hint}")
"""


def attempt(verb: str, folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", AS_ANOTHER, verb, str(folder)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A state folder where everybody can reach it, of whoever tries."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    state = place / "state"
    Store(state).close()
    (state / "access.log").touch()
    give_away(state)
    yield state
    state.chmod(0o700)
    shutil.rmtree(place)


def give_away(state: Path) -> None:
    if os.getuid() == 0:
        for path in (state, *state.rglob("*")):
            os.chown(path, 65534, 65534)


def test_one_that_can_be_used_is(folder: Path) -> None:
    assert attempt("serve", folder) == (0, "")
    assert attempt("list", folder) == (0, "")


@pytest.mark.parametrize("verb", ["serve", "list"])
@pytest.mark.parametrize("name", ["lock", "state.sqlite", "blobs"])
def test_what_in_it_cannot_be_read_is_named(folder: Path, verb: str, name: str) -> None:
    if name == "blobs":
        (folder / name).rmdir()
        (folder / name).write_text("a file in its place")
    else:
        (folder / name).chmod(0o000)
    code, told = attempt(verb, folder)
    assert code != 0 and f"error: the state folder {folder} cannot be" in told and name in told
    assert "hint: name another with --state DIR" in told


def test_a_log_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "access.log").chmod(0o000)
    code, told = attempt("serve", folder)
    assert code != 0 and f"error: {folder}/access.log cannot be written: Permission denied" in told


@pytest.mark.parametrize("verb", ["serve", "list", "delete"])
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_one_of_another_user_is_refused(folder: Path, verb: str) -> None:
    """Whatever its mode is."""
    os.chown(folder, 0, 0)
    for mode in (0o000, 0o700, 0o755):
        folder.chmod(mode)
        code, told = attempt(verb, folder)
        assert code != 0 and f"error: the state folder {folder} cannot be" in told, (oct(mode), told)
        assert "Permission denied" in told or "not permitted" in told or "readonly" in told
        assert "hint: " in told and "--state DIR" in told
