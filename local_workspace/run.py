"""`run -- COMMAND`: a local workspace around one command, which need not know of it."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from local_workspace import environment
from local_workspace.errors import UserError
from local_workspace.serve import add_workspace_arguments, print_summary, private_folder, state_folder

START_SECONDS = 60
STOP_SECONDS = 30  # for the server: a running job gets its time to stop
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # the shell's exit codes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workspace_arguments(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="with its arguments")


def run(arguments: argparse.Namespace) -> int:
    """Run the command under a workspace of its own; its exit code."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise UserError("run needs a command", "python -m local_workspace run -- ./deploy-and-run.sh")
    with private_folder() as folder:
        server = _start_server(arguments, folder)
        try:
            variables = _wait_until_ready(server, folder)
            with environment.workspace_config():
                exit_code = _run_command(command, environment.child_environment(variables))
        finally:
            _stop_server(server)
        print_summary(folder)
    return exit_code


def _start_server(arguments: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C reaches the command and not the server under it."""
    command = [sys.executable, "-m", "local_workspace", "serve", "--state", str(state_folder(arguments))]
    command += [
        "--port",
        str(arguments.port),
        "--page-port",
        str(arguments.page_port),
        "--run-folder",
        str(folder),
    ]
    if arguments.record:
        command += ["--record", str(arguments.record.resolve())]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # when we are killed it ends, and the server with it
        stdout=sys.stderr.fileno(),
        env=environment.package_environment(),
        start_new_session=True,
    )


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_SECONDS
    ready = folder / environment.VARIABLES
    while not ready.is_file():
        if server.poll() is not None:
            raise UserError("the local workspace did not start", "what it said is above")
        if time.monotonic() > deadline:
            raise UserError(f"the local workspace was not ready after {START_SECONDS} s")
        time.sleep(0.02)
    return json.loads(ready.read_text(encoding="utf-8"))


def _run_command(command: Sequence[str], variables: dict[str, str]) -> int:
    early: list[int] = []  # signals that arrive while the command starts
    with _signals_to(early.append):
        try:
            process = subprocess.Popen(command, env=variables)
        except FileNotFoundError:
            print(f"error: {shlex.quote(command[0])} was not found", file=sys.stderr)
            return NOT_FOUND
        except PermissionError:
            print(f"error: {shlex.quote(command[0])} is not executable", file=sys.stderr)
            return NOT_EXECUTABLE
        with _signals_to(process.send_signal):
            for number in early:
                process.send_signal(number)
            exit_code = process.wait()
    return exit_code if exit_code >= 0 else 128 - exit_code


@contextmanager
def _signals_to(receive: Callable[[int], None]) -> Iterator[None]:
    """Pass signals on. Ctrl-C in a terminal reaches the command without us: it is not sent twice."""

    def handle(number: int, _: FrameType | None) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():
            receive(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop_server(server: subprocess.Popen[bytes]) -> None:
    """SIGINT, wait, SIGKILL."""
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if server.stdin:
        server.stdin.close()
