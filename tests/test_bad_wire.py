"""What is no request, what the proxy is asked for, and what is too much or too slow."""

import re
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attacked import AT, FUZZ, MARKER, Target, all_of, ask, raw
from conftest import SCOPE, Served
from hypothesis import given
from hypothesis import strategies as st

from local_workspace import routes
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST, SAMPLES_HOST

SMUGGLED = "GET /workspaceblobstore/secret.txt?{sas} HTTP/1.1\r\nHost: " + BLOB_HOST + "\r\n\r\n"
LINES = [
    "",
    "\r\n",
    "GET\r\n\r\n",
    "GET /\r\n\r\n",
    "GET / HTTP/9.9\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01",
    "\0" * 100,
    f"GET / HTTP/1.1\r\n{AT}{AT}\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT} folded: yes\r\n\r\n",
    f"GET / HTTP/1.1\n{AT}\n\n",
    f"GET /\x01 HTTP/1.1\r\n{AT}\r\n",
    f"GET /\xff HTTP/1.1\r\n{AT}\r\n",
    f"GET / HTTP/1.1\r\n{AT}no colon\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a\0b: c\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a: \0\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a : b\r\n\r\n",
    f"GET /{'x' * 200_000} HTTP/1.1\r\n{AT}\r\n",
    f"GET / HTTP/1.1\r\n{AT}{'x: y' * 50_000}\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: -1\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: 0x10\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: {'9' * 5000}\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    f"GET http://attacker.example.com/ HTTP/1.1\r\n{AT}\r\n",
    "CONNECT attacker.example.com:443 HTTP/1.1\r\nHost: attacker.example.com:443\r\n\r\n",
]
# What a proxy and a server might take for different requests: the second must not be answered.
SPLIT = [
    "POST /x HTTP/1.1\r\n" + AT + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Content-Length: 0\r\nContent-Length: 10\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n"
    + AT
    + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "GET /x HTTP/1.1\r\n" + AT + "X: y\r\n\r\r\n",
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_what_is_no_request_is_refused(target: Target, number: int) -> None:
    received = raw(target, LINES[number].encode("latin-1") + b"\r\n")
    assert not received or re.match(rb"HTTP/1.1 (4\d\d|501) ", received), received[:200]
    assert MARKER.encode() not in received


@pytest.mark.parametrize("number", range(len(SPLIT)))
def test_no_second_request_is_smuggled_behind_a_first(target: Target, number: int) -> None:
    """Through the proxy, as a client comes. The same two, told apart as they should be, are both answered."""
    second = SMUGGLED.format(sas=target.sas)
    received = through_proxy(target, SPLIT[number] + second)
    assert MARKER not in received and received.count("HTTP/1.1 ") <= 1, received
    clean = through_proxy(target, f"GET /x HTTP/1.1\r\n{AT}\r\n" + second)
    assert clean.count("HTTP/1.1 ") == 2 and MARKER in clean


def through_proxy(target: Target, sent: str) -> str:
    connection = socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60)
    connection.sendall(f"CONNECT {BLOB_HOST}:443 HTTP/1.1\r\n\r\n".encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    context = ssl.create_default_context(cafile=target.served.session.verify)
    connection = context.wrap_socket(connection, server_hostname=BLOB_HOST)
    sent = sent.removesuffix("\r\n") + "Connection: close\r\n\r\n"
    return all_of(connection, sent.encode("latin-1")).decode("latin-1")


# The proxy

OURS = (MANAGEMENT_HOST, API_HOST, BLOB_HOST, SAMPLES_HOST)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[socket.socket]:
    """A server on this machine that is no part of the workspace."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def proxied(target: Target, sent: bytes) -> bytes:
    return all_of(socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60), sent)


def was_reached(listener: socket.socket) -> bool:
    return bool(select.select([listener], [], [], 0)[0])


def test_the_proxy_leads_nowhere_else(target: Target, elsewhere: socket.socket) -> None:
    port = elsewhere.getsockname()[1]
    hosts = [
        *(
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "[::1]",
            "::1",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "0",
        ),
        *(
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "%31%32%37.0.0.1",
            "user@127.0.0.1",
            "127.0.0.1\0",
        ),
        *(
            f"{MANAGEMENT_HOST}@127.0.0.1",
            f"127.0.0.1#{MANAGEMENT_HOST}",
            f"127.0.0.1?.{MANAGEMENT_HOST}",
            "",
        ),
        *(
            f"127.0.0.1/.{MANAGEMENT_HOST}",
            f"127.0.0.1\\.{MANAGEMENT_HOST}",
            "notazureml.test",
            "azureml.test.",
        ),
        *("azureml.test.example.com", "xazuremlexampledata.blob.core.windows.net", "blob.core.windows.net"),
        *(
            "login.microsoftonline.com",
            "management.azure.com",
            "169.254.169.254",
            "example.com",
            "example.com.",
        ),
    ]
    targets = [f"{host}:{at}" for host in hosts for at in (port, 443)]
    targets += [f"{MANAGEMENT_HOST}:{at}" for at in (port, 80, 22, "0443", "443@x", "", "-443", "4430")]
    targets += [*hosts, MANAGEMENT_HOST, "", ":443", ":" * 50]
    lines = [f"CONNECT {one} HTTP/1.1" for one in targets]
    lines += [f"connect {MANAGEMENT_HOST}:443 HTTP/1.1", f"CONNECT  {MANAGEMENT_HOST}:443 HTTP/1.1"]
    lines += [f"{method} http://127.0.0.1:{port}/ HTTP/1.1" for method in ("GET", "POST", "OPTIONS", "BREW")]
    lines += [
        f"GET http://{MANAGEMENT_HOST}/ HTTP/1.1",
        "GET / HTTP/1.1",
        f"GET //127.0.0.1:{port}/ HTTP/1.1",
        "\x1b[2J",
    ]
    for line in lines:
        answer = proxied(target, f"{line}\r\nHost: {MANAGEMENT_HOST}\r\n\r\n".encode("latin-1"))
        assert answer.startswith(b"HTTP/1.1 403 "), (line, answer)
    assert not was_reached(elsewhere)
    assert "\x1b" not in target.served.log.read_text()  # it is a person's terminal


@FUZZ
@given(line=st.binary(max_size=300) | st.text(max_size=80).map(lambda text: f"CONNECT {text}".encode()))
def test_no_line_to_the_proxy_opens_a_way(target: Target, elsewhere: socket.socket, line: bytes) -> None:
    answer = proxied(target, line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ") or not answer, answer
    assert not was_reached(elsewhere)


def test_the_proxy_knows_its_own_hosts_by_any_case(target: Target) -> None:
    for host in (*OURS, MANAGEMENT_HOST.upper()):
        with socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60) as connection:
            connection.sendall(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_hung_up_on(target: Target) -> None:
    assert proxied(target, b"CONNECT " + b"x" * 200_000) == b""


# Much, and slow


def test_what_is_refused_is_told_a_bounded_number_of_times(tmp_path: Path) -> None:
    served = Served(tmp_path / "state")
    port = urlsplit(served.environment["HTTPS_PROXY"]).port
    for number in range(1100):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"CONNECT host{number}.example.com:443 HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(20).startswith(b"HTTP/1.1 403")
    assert served.stop() == 0
    told = served.log.read_text()
    assert told.count("refused host") == 1000 and "refused others" in told and "others (100)" in told


def memory(process: int) -> int:
    """Bytes of a process that are in memory now."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read in /proc")
def test_a_huge_body_is_refused_or_goes_to_disk(target: Target) -> None:
    served, chunk, chunks = target.served, b"x" * (1 << 20), 256
    before = memory(served.process.pid)
    put = served.session.put(
        f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}", data=(chunk for _ in range(chunks))
    )
    assert put.status_code == 201
    assert memory(served.process.pid) - before < 64 << 20
    size = served.session.head(f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}")
    assert size.headers["content-length"] == str(chunks << 20)
    path, headers = f"{SCOPE}/computes/huge", {"Authorization": f"Bearer {target.token}"}
    headers["Content-Length"] = str(chunks << 20)
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not read all before it answers
        assert ask(target, "PUT", MANAGEMENT_HOST, path, headers, chunk * 8).status == 413
    assert memory(served.process.pid) - before < 96 << 20
    served.session.delete(f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}")


def test_a_body_that_never_comes_whole_leaves_nothing(target: Target) -> None:
    head = f"PUT /workspaceblobstore/half?{target.sas} HTTP/1.1\r\n{AT}Content-Length: {10**15}\r\n\r\n"
    context = ssl.create_default_context(cafile=target.served.session.verify)
    with socket.create_connection(("127.0.0.1", target.port)) as connection:
        tls = context.wrap_socket(connection, server_hostname="localhost")
        tls.sendall(head.encode() + b"x" * 100_000)
        tls.close()
    address = f"https://{BLOB_HOST}/workspaceblobstore/half?{target.sas}"
    assert target.served.session.get(address).status_code == 404


def test_connections_that_say_nothing_do_not_keep_others_waiting(target: Target) -> None:
    ports = (target.port, target.page_port, target.proxy_port)
    idle = [socket.create_connection(("127.0.0.1", port)) for port in ports for _ in range(60)]
    for number, connection in enumerate(idle):
        if number % 2:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 12")
    try:
        address = f"https://{BLOB_HOST}/workspaceblobstore/secret.txt?{target.sas}"
        assert target.served.session.get(address, timeout=60).text == MARKER
        assert ask(target, "GET", routes.PAGE, f"/?{target.key}").status == 200
    finally:
        for connection in idle:
            connection.close()
