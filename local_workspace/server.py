"""`serve`: TLS, listeners, the beginning and the end of a run."""

import asyncio
import json
import logging
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from local_workspace import environment, proxy
from local_workspace.dispatch import Server
from local_workspace.errors import UserError
from local_workspace.jobs import Jobs
from local_workspace.store import Store
from local_workspace.tokens import Keys
from local_workspace.workspace import DATASTORES, Workspace

KEEP_ALIVE = 120  # seconds
MOST_CONNECTIONS = 500  # of each port, at a time: each takes memory, also one that says nothing
MOST_FILES = 4096  # a connection through the proxy takes three

Announce = Callable[[Mapping[str, str]], None]  # told the variables once the server is ready


@dataclass(frozen=True)
class Options:
    port: int = 0  # 0: a free one
    page_port: int = 0
    record: Path | None = None  # every JSON answer, one a line
    until_stdin_ends: bool = False


class Listener(socket.socket):
    """Takes MOST_CONNECTIONS, and hangs up on those beyond."""

    def __init__(self) -> None:
        # asyncio sends at once (TCP_NODELAY) only where the protocol is named: 40 ms a request otherwise.
        super().__init__(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._taken: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._taken = [one for one in self._taken if one.fileno() >= 0]  # those that are open
        if len(self._taken) >= MOST_CONNECTIONS:
            connection.close()
            raise BlockingIOError  # asyncio asks again
        self._taken.append(connection)
        return connection, address


class Protocol(H11Protocol):
    """Hangs up on a client that asks nothing, and answers one that has closed its sending half."""

    half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE, self.timeout_keep_alive_handler)

    def eof_received(self) -> bool:
        """True keeps the other half open, which asyncio cannot do over TLS."""
        asked = self.cycle and not self.cycle.more_body and not self.cycle.response_complete
        self.half_closed = bool(asked) and self.scheme == "http"
        return self.half_closed

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which may begin with a next request that it has read
        if self.half_closed and self.cycle.response_complete:
            self.transport.close()


def serve(state: Path, run_folder: Path, options: Options, announce: Announce = lambda _: None) -> None:
    """Serve until SIGINT or SIGTERM, or until the parent that holds our stdin is gone."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if options.until_stdin_ends:
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    _allow_files()
    listeners = [_listen(options.port), _listen(options.page_port), _listen(0)]
    ports = [listener.getsockname()[1] for listener in listeners]
    tls = environment.make_certificates(run_folder)
    environment.write_files(run_folder)
    network = environment.network_variables(run_folder, ports[2])
    workspace = _open(state, network, ports[1])
    try:
        server = Server(workspace, state / "access.log", options.record)
    except UserError:
        workspace.jobs.close()
        raise
    logging.basicConfig(stream=server.log, level=logging.WARNING)  # what uvicorn has to say
    logging.raiseExceptions = False  # on a full disk it says nothing
    http = [_http(server, tls), _http(server)]
    loop = threading.Thread(target=_run, args=(http, listeners, server, stop))
    loop.start()
    variables = network | environment.azure_variables(run_folder, ports[0], workspace.keys.identity_header)
    variables["LOCAL_WORKSPACE_PAGE"] = workspace.page_address()
    environment.announce(run_folder, variables)
    announce(variables)
    stop.wait()
    _close(workspace, server, http, loop, run_folder)


def _open(state: Path, network: dict[str, str], page_port: int) -> Workspace:
    store = Store(state)
    for container in DATASTORES.values():
        store.create_container(container)
    try:
        jobs = Jobs(store, environment.executor_environment(network), network)
    except OSError as error:
        raise UserError(
            f"the state folder {state} cannot be used: {error.strerror}: {error.filename}"
        ) from None
    return Workspace(store, Keys(), jobs, f"http://127.0.0.1:{page_port}")


def _allow_files() -> None:
    """As many open files as there may be connections, where the system lets us."""
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < MOST_FILES:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(MOST_FILES, limit), limit))


def _listen(port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UserError(f"port {port}: expected a number from 0 to 65535", "leave it away for a free one")
    listener = Listener()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        return listener
    except OSError as error:
        listener.close()
        message = f"port {port} of 127.0.0.1 is not free: {error.strerror}"
        raise UserError(message, "choose another one, or none") from None


def _http(server: Server, tls: ssl.SSLContext | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        server,
        ssl_context_factory=(lambda *_: tls) if tls else None,
        http=Protocol,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def _run(
    http: list[uvicorn.Server], listeners: list[socket.socket], server: Server, stop: threading.Event
) -> None:
    """Outside the main thread, so that uvicorn leaves the signals alone."""
    try:
        asyncio.run(_answer(http, listeners, server))
    finally:
        stop.set()  # also where it fails


async def _answer(http: list[uvicorn.Server], listeners: list[socket.socket], server: Server) -> None:
    relay = await proxy.start(listeners[2], listeners[0].getsockname()[1], server.refuse)
    await asyncio.gather(*(one.serve([listener]) for one, listener in zip(http, listeners[:2], strict=True)))
    relay.close()


def _close(
    workspace: Workspace, server: Server, http: list[uvicorn.Server], loop: threading.Thread, run_folder: Path
) -> None:
    unfinished = workspace.jobs.close()
    for one in http:
        one.should_exit = True
    loop.join()
    summary = {"answered": server.answered, "refused": dict(server.refused), "unfinished_jobs": unfinished}
    (run_folder / environment.SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
    server.close()
    workspace.store.close()
