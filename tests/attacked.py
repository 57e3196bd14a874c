"""A local workspace under attack, over real sockets: what is asked of it, straight to its ports."""

import http.client
import os
import re
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from conftest import SCOPE, Served
from deployed import SCRIPT, invoke, make_deployment, upload, wait_for
from hypothesis import HealthCheck, settings

from local_workspace import routes
from local_workspace.workspace import BLOB_HOST

MARKER = "only the owner may read this"
# The same examples each time, so that the suite passes or fails for what changed. More, by hand:
# EXAMPLES=20000 python -m pytest tests/test_bad_requests.py
MOST = int(os.environ.get("EXAMPLES", "150"))
FUZZ = settings(
    max_examples=MOST,
    derandomize="EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Target(NamedTuple):
    served: Served
    token: str
    sas: str
    key: str  # `key=...`, of the pages
    port: int
    page_port: int
    proxy_port: int


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


def outside(folder: Path, state: Path) -> dict[Path, bytes]:
    """Every file and folder around the state folder; the server's log beside it is the test's own."""
    paths = [path for path in folder.rglob("*") if state not in [path, *path.parents]]
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths if path.suffix != ".log"}


def ask(
    target: Target,
    method: str,
    host: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """One request over a connection of its own, straight to the port: the path arrives as it is written."""
    if host == routes.PAGE:
        connection = http.client.HTTPConnection("127.0.0.1", target.page_port, timeout=60)
    else:
        context = ssl.create_default_context(cafile=target.served.session.verify)
        context.check_hostname = False  # the port answers for all hosts
        connection = http.client.HTTPSConnection("127.0.0.1", target.port, timeout=60, context=context)
    shown = {routes.PAGE: "127.0.0.1", routes.LOOPBACK: "localhost"}.get(host, host)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Host": shown, "Content-Length": str(len(body))} | (headers or {})).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def raw(target: Target, sent: bytes) -> bytes:
    """Bytes as they are, to the port of the pages, which is the workspace's server without TLS."""
    return all_of(socket.create_connection(("127.0.0.1", target.page_port), timeout=60), sent)


def all_of(connection: socket.socket, sent: bytes) -> bytes:
    """What comes back until the server closes, or has nothing more to say."""
    received = b""
    with connection, suppress(OSError):  # it has closed already
        connection.sendall(sent)
        while select.select([connection], [], [], 2)[0] and (chunk := connection.recv(1 << 16)):
            received += chunk
    return received


def is_safe(answer: Answer) -> bool:
    """Not a failure of the server. 501 is its word for what it does not do."""
    return answer.status < 500 or answer.status == 501


EXAMPLE = {
    "/datastores/{name}": "/datastores/workspaceblobstore",
    "/computes/{name}": "/computes/cluster",
    "/codes/{name}": "/codes/guarded",
    "{kind:asset}/{name}": "data/secret",
    "{kind:asset}": "data",
    "{container}/{blob:path}": "workspaceblobstore/secret.txt",
    "{container}": "workspaceblobstore",
    "{endpoint}": "guarded",
    "{deployment}": "main",
    "{version}": "1",
    "{job}": "scored",
    "{run}": "scored",
    "{row}": "0",
    "{subscription}": "test_subscription",
    "{group}": "group",
    "{workspace}": "shop",
    "{location}": "local",
    "{operation}": "0",
}
PUBLIC = (*routes.PUBLIC, routes.downloads.get_model, routes.downloads.get_images)
GUARDED = [line for line in routes.TABLE if line[3] not in PUBLIC]


def example(path: str) -> str:
    for name, value in EXAMPLE.items():
        path = path.replace(name, value)
    assert "{" not in path, "a new route: say what its names stand for in EXAMPLE"
    return path


NASTY = [
    *("..", ".", "../../../../beside.txt", "%2e%2e", "..%2f..%2fbeside.txt", "..%5c..%5cbeside.txt"),
    *(
        "%2e%2e%2f%2e%2e%2fbeside.txt",
        "%252e%252e%252fbeside.txt",
        "%c0%ae%c0%ae/beside.txt",
        "..;/beside.txt",
    ),
    *("/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "C:%5cx", "%00", "a%00b", "%0d%0aX-Injected:%20yes"),
    *(
        "%ff%fe",
        "%ed%a0%80",
        "%ef%bf%bf",
        "%1b[2J",
        "%0a",
        "%7f",
        "%e2%80%ae",
        "%",
        "%zz",
        "a" * 300,
        "b" * 5000,
    ),
    *(
        "x'%20OR%201=1--",
        '"',
        "<script>",
        "$(id)",
        "`id`",
        "{}",
        "%s%n",
        "con",
        "-rf",
        "~root",
        "+",
        "*",
        "[",
        "\\",
    ),
    *("%f0%9f%92%a9", "%d9%a1", "1e999", "-1", "NaN", "null", "9" * 400),
]

AT = "Host: " + BLOB_HOST + "\r\n"


def attack(folder: Path) -> Iterator[Target]:
    """A workspace of its own that holds something of everything; afterwards, what must not have happened."""
    state = folder / "some" / "levels" / "down" / "state"
    state.parent.mkdir(parents=True)
    (folder / "beside.txt").write_text("not part of the state")
    before = outside(folder, state)
    served = Served(state)
    make_deployment(served, "guarded", SCRIPT.replace("{path} {WORD}", "tench.JPEG 7 0.5"))
    upload(served, "workspaceblobstore", "secret.txt", MARKER.encode())
    served.put("data/secret/versions/1", dataType="uri_file", dataUri=MARKER)
    assert invoke(served, "guarded", name="scored").status_code == 201
    assert wait_for(served, "scored", "Completed", "Failed")["status"] == "Completed"
    sas = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    pages, proxy = (urlsplit(served.environment[name]) for name in ("LOCAL_WORKSPACE_PAGE", "HTTPS_PROXY"))
    port = urlsplit(served.identity[0]).port
    yield Target(served, served.token(), sas, pages.query, port, pages.port, proxy.port)
    assert served.session.get(f"https://{BLOB_HOST}/workspaceblobstore/secret.txt?{sas}").text == MARKER
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()
    assert not re.search(r"^[\d:]{8} 500 ", (state / "access.log").read_text(), re.MULTILINE)
    assert "\x1b" not in served.log.read_text() + (state / "access.log").read_text()  # a terminal shows them
    assert outside(folder, state) == before
