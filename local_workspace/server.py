"""`serve`: TLS, dispatch, access log. An unknown host or route is answered 501 and named in the log."""

import asyncio
import errno
import inspect
import json
import logging
import re
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from local_workspace import environment, page, proxy, routes
from local_workspace.errors import ServiceError, UserError
from local_workspace.jobs import Jobs
from local_workspace.store import Store
from local_workspace.tokens import Keys
from local_workspace.workspace import API_HOST, BLOB_HOST, DATASTORES, MANAGEMENT_HOST, Call, Workspace

JSON_LIMIT = 4 << 20  # bytes in one JSON body
MOST_REFUSED, MOST_SHOWN = 1000, 300  # different refusals that are told; characters of what a client sent
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota, a limit
HOST = re.compile(r"([a-z0-9.-]+)(?::[0-9]+)?", re.IGNORECASE)
KEEP_ALIVE = 120  # seconds
SEE = "See the README: Differences from Azure Machine Learning."

Announce = Callable[[Mapping[str, str]], None]  # told the variables once the server is ready


@dataclass(frozen=True)
class Options:
    port: int = 0  # 0: a free one
    page_port: int = 0
    record: Path | None = None  # every JSON answer, one a line
    until_stdin_ends: bool = False


class Server:
    """The ASGI application: one workspace, and a count of what it answered and refused."""

    def __init__(self, workspace: Workspace, log: Path, record: Path | None = None) -> None:
        self.workspace = workspace
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self.log = log.open("w", encoding="utf-8")
        self._record = record.open("w", encoding="utf-8") if record else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        started = time.perf_counter()
        response = await self._answer(request)
        if self._record and isinstance(response, JSONResponse):
            self._write_record(request, response)
        await response(scope, receive, send)
        self._write_log(request, response, time.perf_counter() - started)

    async def _answer(self, request: Request) -> Response:
        host = _host(request)
        if {"content-length", "transfer-encoding"} <= set(request.headers):  # where does it end?
            error = ServiceError(400, "InvalidHeaders", "The length of the request is given in two ways.")
            response = error_response(host, error)
            response.headers["connection"] = "close"  # what follows may not be a request
            return response
        try:
            found = routes.find(request.method, host, request.scope["path"], request.query_params)
            if found is None:
                return self._refuse_route(request, host)
            handler, names = found
            self.answered += 1
            self._authorise(request, host, handler)
            body = {} if host == BLOB_HOST else await read_json(request)
            answer = handler(Call(self.workspace, request, names, body))
            answer = await answer if inspect.isawaitable(answer) else answer
            return answer if isinstance(answer, Response) else JSONResponse(answer)
        except ServiceError as error:
            return error_response(host, error)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:  # the client gets an error body, the log the traceback
            traceback.print_exc(file=self.log)
            return error_response(host, self._fault(request, error))

    def _fault(self, request: Request, error: Exception) -> ServiceError:
        """A body of another form than the handler expects, or a mistake of ours."""
        if request.method in ("PUT", "POST") and isinstance(error, (AttributeError, KeyError, TypeError)):
            message = f"The request content does not have the form that is expected: {error}"
            return ServiceError(400, "InvalidRequestContent", message)
        if isinstance(error, OSError) and error.errno in FULL:
            message = f"The state folder takes no more: {error.strerror}"
            return ServiceError(507, "InsufficientStorage", message)
        message = f"The local workspace failed; the traceback is in {self.log.name}"
        return ServiceError(500, "InternalServerError", message)

    def _authorise(self, request: Request, host: str, handler: routes.Handler) -> None:
        """ARM and the data plane want the token of this run, pages its key. Storage checks signatures."""
        if host == routes.PAGE and handler not in routes.PUBLIC:
            page.authorise(self.workspace.keys, request)
        if host not in (MANAGEMENT_HOST, API_HOST) or handler in routes.PUBLIC:
            return
        authorization = request.headers.get("authorization", "")
        if not authorization:
            message = "Authentication failed. The 'Authorization' header is missing."
            raise ServiceError(401, "AuthenticationFailed", message)
        if not self.workspace.keys.accepts_token(authorization):
            raise ServiceError(401, "InvalidAuthenticationToken", "The access token is invalid.")

    def refuse(self, what: str) -> None:
        what = _shown(what)
        if what not in self.refused and len(self.refused) >= MOST_REFUSED:
            what = "others"
        if what not in self.refused:
            print(f"local workspace: refused {what}. {SEE}", file=sys.stderr, flush=True)
        self.refused[what] += 1

    def _refuse_route(self, request: Request, host: str) -> Response:
        what = f"{request.method} {request.scope['scheme']}://{request.headers.get('host')}{request.scope['path']}"
        self.refuse(what)
        message = f"The local workspace does not answer {what}. {SEE}"
        return error_response(host, ServiceError(501, "NotImplemented", message))

    def _write_log(self, request: Request, response: Response, seconds: float) -> None:
        path = request.scope["path"]
        where = _shown(f"{request.headers.get('host')}{path}")
        clock, took = time.strftime("%H:%M:%S"), f"{seconds * 1000:.0f} ms"
        print(clock, response.status_code, request.method, where, took, file=self.log, flush=True)

    def _write_record(self, request: Request, response: Response) -> None:
        body = json.loads(bytes(response.body))
        line = {
            "method": request.method,
            "path": request.scope["path"],
            "status": response.status_code,
            "body": body,
        }
        print(json.dumps(line), file=self._record, flush=True)

    def close(self) -> None:
        self.log.close()
        if self._record:
            self._record.close()


def _shown(text: str) -> str:
    """What a client sent, on a line of a log or a terminal: nothing in it may steer either of them."""
    return "".join(one if one.isprintable() else "?" for one in text[:MOST_SHOWN])


def _host(request: Request) -> str:
    """The host as the table of routes has it. A page of another site that resolves to us is not let in."""
    named = HOST.fullmatch(request.headers.get("host", ""))
    host = named[1].lower() if named else ""
    if host in ("localhost", "127.0.0.1"):
        return routes.PAGE if request.scope["scheme"] == "http" else routes.LOOPBACK
    return host if request.scope["scheme"] == "https" else f"http://{host}"


async def read_json(request: Request) -> dict[str, Any]:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > JSON_LIMIT:
            raise ServiceError(413, "RequestEntityTooLarge", f"The body is larger than {JSON_LIMIT} bytes.")
    try:
        body = json.loads(content) if content else {}
        # What Python reads and JSON does not have would fail later: NaN, half of a surrogate pair, 1e999.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        message = f"The request content is not valid JSON: {error}"
        raise ServiceError(400, "InvalidRequestContent", message) from None
    if not isinstance(body, dict):
        raise ServiceError(400, "InvalidRequestContent", "The request content is not a JSON object.")
    return body


def error_response(host: str, error: ServiceError) -> Response:
    """The error body of ARM, that of storage, or a text for a person."""
    if host == routes.PAGE:
        return page.error_response(error)
    headers = {"x-ms-error-code": error.code}
    if host == BLOB_HOST:
        text = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
        return Response(text, error.status, headers, "application/xml")
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"code": error.code, "message": error.message, "details": []}
    return JSONResponse({"error": body}, error.status, headers)


# Running it


def serve(state: Path, run_folder: Path, options: Options, announce: Announce = lambda _: None) -> None:
    """Serve until SIGINT or SIGTERM, or until the parent that holds our stdin is gone."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if options.until_stdin_ends:
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    listeners = [_listen(options.port), _listen(options.page_port), _listen(0)]
    ports = [listener.getsockname()[1] for listener in listeners]
    tls = environment.make_certificates(run_folder)
    environment.write_files(run_folder)
    network = environment.network_variables(run_folder, ports[2])
    workspace = _open(state, network, ports[1])
    server = Server(workspace, state / "access.log", options.record)
    logging.basicConfig(stream=server.log, level=logging.WARNING)  # what uvicorn has to say
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
    jobs = Jobs(store, environment.executor_environment(network), network)
    return Workspace(store, Keys(), jobs, f"http://127.0.0.1:{page_port}")


def _listen(port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise UserError(f"port {port}: expected a number from 0 to 65535", "leave it away for a free one")
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named: 40 ms a request otherwise.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
