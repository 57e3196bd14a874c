"""The process behind bin/az: imports azure.ai.ml once, and forks for each command that az_client.py brings.

It ends when its socket is gone (the run's folder was removed) or when no command came for ten minutes.
"""

import fcntl
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

IDLE_LIMIT = 600  # seconds without a command
CHECK_INTERVAL = 2  # seconds between two looks whether the run is still there
STOP_GRACE = 3  # seconds that a command may take to clean up when its client has gone


def main() -> None:
    os.chdir(os.environ["AZURE_CONFIG_DIR"])
    with Path("az.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # there is one already
        from local_workspace import az, az_assets, az_batch, az_jobs  # noqa: F401  what every command is spared

        gc.freeze()  # the collector of a forked process leaves the shared pages alone
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the command
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(
            signal.SIGCHLD, signal.SIG_IGN
        )  # nobody waits for the commands: the kernel clears them away
        address = Path("az.sock")  # no longer: a socket's path may have 107 bytes (macOS: 103)
        with listen(address) as listener:
            try:
                serve(listener, address, lock.fileno(), az.main)
            finally:
                address.unlink(missing_ok=True)


def listen(address: Path) -> socket.socket:
    address.unlink(missing_ok=True)  # of a process that was killed: this one holds the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)  # the owner, nobody else, may connect
    listener.bind(str(address))
    os.umask(umask)
    listener.listen(32)
    listener.settimeout(CHECK_INTERVAL)
    return listener


def serve(listener: socket.socket, address: Path, lock: int, command: Callable[[list[str]], int]) -> None:
    last_command = time.monotonic()
    while address.exists() and time.monotonic() - last_command < IDLE_LIMIT:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        last_command = time.monotonic()
        with connection:
            if os.fork() == 0:
                listener.close()
                os.close(lock)  # a long command does not keep the next process from starting
                run_command(connection, command)


def run_command(connection: socket.socket, command: Callable[[list[str]], int]) -> NoReturn:
    """In the forked process: become the client's command, and send its exit code."""
    exit_code = 1
    try:
        arguments = take_over(connection)
        threading.Thread(target=stop_without_client, args=[connection], daemon=True).start()
        try:
            exit_code = command(arguments)
        except SystemExit as stop:  # of a wrong flag, or of --help
            exit_code = stop.code if isinstance(stop.code, int) else 1
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client leaves as soon as it has the exit code
        with suppress(BrokenPipeError):
            connection.send(bytes([exit_code]))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(exit_code)  # whatever happened: never go on as a second server


def take_over(connection: socket.socket) -> list[str]:
    """Take the client's standard files, folder, variables and umask; return its arguments."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    body = connection.makefile("rb").read(int.from_bytes(size, "big"))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    request = json.loads(body)
    os.environ.clear()
    os.environ.update(request["variables"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return request["arguments"]


def stop_without_client(connection: socket.socket) -> None:
    """The client sends nothing more: when reading ends, it was interrupted or killed."""
    with suppress(OSError):
        connection.recv(1)
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)  # nobody waits for what it says now
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(STOP_GRACE)
    os._exit(130)


if __name__ == "__main__":
    main()
