"""What bin/az runs: gives its command, folder, variables and files to az_server, and returns the exit code.

It has to start in a few hundredths of a second, hence only the standard library, and nothing of this package.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT = 60  # seconds until the SDK is imported, even on a busy machine


def connect(folder: str) -> socket.socket | None:
    """From inside the folder: a socket's path may have 107 bytes (macOS: 103), and this folder's more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.chdir(folder)
        connection.connect("az.sock")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def python_variables() -> dict[str, str]:
    """Its Python finds this package, and keeps docstrings, without which azure.ai.ml cannot be imported."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONOPTIMIZE"}
    return variables | {"PYTHONPATH": os.pathsep.join(path)}


def start_server(folder: str) -> socket.socket:
    """Start the process that has the SDK loaded; of two that commands start at once, one ends by itself."""
    null = subprocess.DEVNULL
    server = subprocess.Popen(
        [sys.executable, "-m", "local_workspace.az_server"],
        stdin=null,
        stdout=null,
        stderr=null,
        env=python_variables(),
        start_new_session=True,
    )
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and not server.poll():
        connection = connect(folder)
        if connection:
            return connection
        time.sleep(0.05)
    sys.exit("ERROR: the process that serves az did not start; try: python -m local_workspace.az_server")


def run_here() -> None:
    """Without the SDK's process, for the commands that need no SDK."""
    command = [sys.executable, "-m", "local_workspace.az", *sys.argv[1:]]
    os.execve(sys.executable, command, python_variables())


def open_standard_files() -> None:
    """A closed one cannot be sent, and its number would go to the next file that is opened."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main() -> int:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a script may have it ignored, to clean up
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # dying closes the connection, which ends the command
    open_standard_files()
    working_folder = str(Path.cwd())
    folder = os.environ["AZURE_CONFIG_DIR"]
    connection = connect(folder)
    if connection is None and sys.argv[1:2] != ["ml"]:
        os.chdir(working_folder)
        run_here()
    connection = connection or start_server(folder)
    umask = os.umask(0o077)
    os.umask(umask)
    request = {
        "arguments": sys.argv[1:],
        "folder": working_folder,
        "variables": dict(os.environ),
        "umask": umask,
    }
    body = json.dumps(request).encode()
    socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(body)
    exit_code = connection.recv(1)
    return exit_code[0] if exit_code else 1


if __name__ == "__main__":
    sys.exit(main())
