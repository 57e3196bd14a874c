"""The ASGI application: which handler answers, who may ask, what is logged and recorded.

An unknown host or route is answered 501 and named in the log.
"""

import errno
import inspect
import json
import os
import re
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote_to_bytes
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from local_workspace import page, routes
from local_workspace.errors import ServiceError, UserError
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST, Call, Workspace

JSON_LIMIT = 4 << 20  # bytes in one JSON body
MOST_REFUSED, MOST_SHOWN = 1000, 300  # different refusals that are told; characters of what a client sent
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # of a disk, a quota, a limit
HOST = re.compile(r"([a-z0-9.-]+)(?::[0-9]+)?", re.IGNORECASE)
SEE = "See the README: Differences from Azure Machine Learning."
# In a recorded answer: access tokens, signatures, and what lets its holder see the pages.
SECRET = re.compile(r'(?<=sig=|key=)[^&\s"]+|(?<=ticket=)[^&\s"]+|eyJ[\w-]+\.[\w-]+\.[\w-]+', re.IGNORECASE)


class Server:
    """The ASGI application: one workspace, and a count of what it answered and refused."""

    def __init__(self, workspace: Workspace, log: Path, record: Path | None = None) -> None:
        self.workspace = workspace
        self.answered = 0
        self.refused: Counter[str] = Counter()
        self.log = _open_private(log)
        self._record = _open_private(record) if record else None

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
            return await self._handle(request, host)
        except ServiceError as error:
            return error_response(host, error)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            return error_response(host, self._fault(error))

    async def _handle(self, request: Request, host: str) -> Response:
        _check_path(request)
        found = routes.find(request.method, host, request.scope["path"], request.query_params)
        if found is None:
            return self._refuse_route(request, host)
        handler, names = found
        self.answered += 1
        if host == routes.PAGE and "ticket" in request.query_params:
            return self._let_in(request)
        self._authorise(request, host, handler)
        body = {} if host == BLOB_HOST else await read_json(request)
        answer = handler(Call(self.workspace, request, names, body))
        answer = await answer if inspect.isawaitable(answer) else answer
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    def _fault(self, error: Exception) -> ServiceError:
        """A full disk, or a mistake of ours: the client gets an error body, the log the traceback."""
        if isinstance(error, OSError) and error.errno in FULL:
            message = f"The state folder takes no more: {error.strerror}"
            return ServiceError(507, "InsufficientStorage", message)
        with suppress(OSError):
            traceback.print_exception(error, file=self.log)
        message = f"The local workspace failed; the traceback is in {self.log.name}"
        return ServiceError(500, "InternalServerError", message)

    def _let_in(self, request: Request) -> Response:
        """What a job prints is good for an hour, and leads to the address with the key of the run."""
        if not self.workspace.keys.accepts_ticket(request.query_params["ticket"]):
            message = "This address has expired: open the page with az ml job show --name JOB --web"
            raise ServiceError(403, "Forbidden", message)
        address = self.workspace.page_address(quote(request.scope["path"]))
        return RedirectResponse(address, 303, page.HEADERS)

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
        message = f"The local workspace does not answer {_shown(what)}. {SEE}"
        return error_response(host, ServiceError(501, "NotImplemented", message))

    def _write_log(self, request: Request, response: Response, seconds: float) -> None:
        path = request.scope["path"]
        where = _shown(f"{request.headers.get('host')}{path}")
        clock, took = time.strftime("%H:%M:%S"), f"{seconds * 1000:.0f} ms"
        with suppress(OSError):  # a full disk: the client has its answer
            print(clock, response.status_code, request.method, where, took, file=self.log, flush=True)

    def _write_record(self, request: Request, response: Response) -> None:
        body = json.loads(bytes(response.body))
        line = {
            "method": request.method,
            "path": request.scope["path"],
            "status": response.status_code,
            "body": body,
        }
        with suppress(OSError):
            print(SECRET.sub("blanked", json.dumps(line)), file=self._record, flush=True)

    def close(self) -> None:
        for file in filter(None, (self.log, self._record)):
            with suppress(OSError):
                file.close()


def _open_private(path: Path) -> IO[str]:
    """A file for writing that only its owner can read, also where another stood before."""
    try:
        file = open(path, "w", encoding="utf-8", opener=_create_private)  # noqa: SIM115
        if path.is_file():  # no device
            os.fchmod(file.fileno(), 0o600)
        return file
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}", "name another file or folder"
        ) from None


def _create_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_path(request: Request) -> None:
    """Two names that are not UTF-8 would be one otherwise."""
    try:
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError:
        raise ServiceError(400, "InvalidUri", "The path of the request is not UTF-8.") from None


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
    if error.status == 304:  # it has no body
        return Response(status_code=304, headers=headers)
    if host == BLOB_HOST:
        text = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
        return Response(text, error.status, headers, "application/xml")
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"code": error.code, "message": error.message, "details": []}
    return JSONResponse({"error": body}, error.status, headers)
