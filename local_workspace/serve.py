"""`serve`: a local workspace that stays until it is interrupted. Its state is kept in one folder."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from local_workspace import environment
from local_workspace.errors import UserError
from local_workspace.samples import RECORDS
from local_workspace.store import is_state_folder

# Of the folder of a run. Earlier versions had another prefix and no lock: theirs are left alone.
PREFIX = "local-workspace-run-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace_arguments(parser)
    parser.add_argument("--run-folder", type=Path, help=argparse.SUPPRESS)  # given by `run`


def add_state_argument(parser: argparse.ArgumentParser) -> None:
    default = Path(".local_workspace")
    text = f"state folder (default: {default})"
    parser.add_argument("--state", type=Path, default=default, metavar="DIR", help=text)


def add_workspace_arguments(parser: argparse.ArgumentParser) -> None:
    add_state_argument(parser)
    parser.add_argument("--port", type=int, default=0, help="of the workspace (default: a free one)")
    parser.add_argument("--page-port", type=int, default=0, help="of the job pages (default: a free one)")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write every JSON answer there, one a line"
    )


def serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; for a person, print which file to `source` in another terminal."""
    from local_workspace import server  # starlette and uvicorn: not for the other verbs

    state = state_folder(arguments)
    record = arguments.record.resolve() if arguments.record else None
    options = server.Options(arguments.port, arguments.page_port, record, arguments.run_folder is not None)
    if arguments.run_folder is not None:
        parent = os.getppid()
        with _locked(arguments.run_folder):
            server.serve(state, arguments.run_folder, options)
        if os.getppid() != parent:  # `run` was killed, and cannot do it
            environment.remove_config()
            shutil.rmtree(arguments.run_folder, ignore_errors=True)
        return 0
    with private_folder() as folder:
        server.serve(state, folder, options, lambda variables: _invite(state, folder, variables))
        print_summary(folder)
    return 0


def state_folder(arguments: argparse.Namespace) -> Path:
    """The state folder, which ignores itself in git. A folder with other things in it is refused."""
    folder = arguments.state.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be a state folder: {error.strerror}", "name one: --state DIR"
        ) from None
    try:
        foreign = {path.name for path in folder.iterdir()} - {"samples", ".gitignore", *RECORDS}
        if foreign and not is_state_folder(folder):
            raise UserError(
                f"{folder} is not empty and no state folder", "name a new folder with --state DIR"
            )
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        message = f"the state folder {folder} cannot be used: {error.strerror}: {error.filename}"
        raise UserError(message, "name another with --state DIR") from None
    return folder


@contextmanager
def private_folder() -> Iterator[Path]:
    """For the secrets of one run: readable by its owner only, gone when the run ends.

    It is locked as long as there is a process of the run. What others that were killed have left is removed.
    """
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, operation: int = fcntl.LOCK_SH) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # A folder without its certificate is one that another run makes just now, or no one's of ours.
        with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if (folder / environment.BUNDLE).is_file() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def _invite(state: Path, folder: Path, variables: Mapping[str, str]) -> None:
    """A file for other terminals, so that their commands find this workspace."""
    dropped = " ".join(sorted(environment.dropped_names()))
    lines = [f"unset {dropped}"] if dropped else []
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PATH={shlex.quote(os.pathsep.join(environment.FIRST_IN_PATH))}:"$PATH"')
    environment.write_private(folder / "activate", "\n".join(lines) + "\n")
    jobs = variables["LOCAL_WORKSPACE_PAGE"]
    print(f"local workspace: state in {state}\njobs: {jobs}\n", file=sys.stderr)
    print(f"    source {folder}/activate\n", file=sys.stderr, flush=True)


def print_summary(folder: Path) -> None:
    path = folder / environment.SUMMARY
    if not path.is_file():
        print("local workspace: the server ended without a word", file=sys.stderr)
        return
    summary = json.loads(path.read_text(encoding="utf-8"))
    refused = summary["refused"]
    line = f"local workspace: {summary['answered']} requests answered, {sum(refused.values())} refused"
    if refused:
        line += ": " + ", ".join(f"{what} ({count})" for what, count in refused.items())
    for job in summary["unfinished_jobs"]:
        line += f"; job {job} was not finished"
    print(line, file=sys.stderr, flush=True)
