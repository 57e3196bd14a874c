"""How many connections are taken, and what becomes of those that say nothing or only half."""

import asyncio
import resource
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from attacked import Target, attack

from local_workspace import server
from local_workspace.server import MOST_CONNECTIONS, Listener
from local_workspace.workspace import BLOB_HOST


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    yield from attack(tmp_path_factory.mktemp("crowded"))


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


@contextmanager
def many_files() -> Iterator[None]:
    """Both ends of each connection are files of this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def is_open(connection: socket.socket) -> bool:
    with suppress(OSError):
        return not (select.select([connection], [], [], 0)[0] and connection.recv(1) == b"")
    return False


@pytest.mark.parametrize("port", ["port", "page_port", "proxy_port"])
def test_no_more_connections_are_taken_than_it_says(crowded: Target, port: str) -> None:
    """Those beyond are hung up on; once there is room again, all is as before."""
    number = getattr(crowded, port)
    many = [connect(number) for _ in range(MOST_CONNECTIONS + 50)]
    extra = connect(number)
    assert extra.recv(1) == b""  # it waits for the server to hang up
    assert sum(is_open(one) for one in many) <= MOST_CONNECTIONS
    for one in [*many, extra]:
        one.close()
    address = f"https://{BLOB_HOST}/workspaceblobstore/secret.txt?{crowded.sas}"
    for _ in range(100):  # the server learns of each end on its own
        with suppress(OSError):
            if crowded.served.session.get(address, timeout=60).status_code == 200:
                break
    assert crowded.served.session.get(address, timeout=60).status_code == 200


def test_a_place_is_free_again_as_soon_as_a_connection_ends() -> None:
    with Listener() as listener, many_files():
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for _ in range(2):
            held = [one for _ in range(MOST_CONNECTIONS) for one in (connect(port), listener.accept()[0])]
            with connect(port), pytest.raises(BlockingIOError):
                listener.accept()
            for one in held:
                one.close()


def answers(connection: socket.socket, sent: bytes) -> bytes:
    """What comes after the sending half has been closed, up to the end."""
    with connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_a_client_that_closes_its_sending_half_gets_its_answer(crowded: Target) -> None:
    head = f"Host: 127.0.0.1:{crowded.page_port}\r\n\r\n"
    page = f"GET /jobs/scored?{crowded.key} HTTP/1.1\r\n{head}".encode()
    received = answers(connect(crowded.page_port), page)
    assert received.startswith(b"HTTP/1.1 200 ") and received.rstrip().endswith(b"</html>")
    both = answers(connect(crowded.page_port), page + page)
    assert both.count(b"HTTP/1.1 200 ") == 2 and both.count(b"</html>") == 2


def test_a_client_that_closes_without_having_asked_is_hung_up_on(crowded: Target) -> None:
    assert answers(connect(crowded.page_port), b"") == b""
    assert answers(connect(crowded.page_port), b"GET / HTTP/1.1\r\nHost: 12") == b""
    context = ssl.create_default_context(cafile=crowded.served.session.verify)
    with context.wrap_socket(connect(crowded.port), server_hostname="localhost") as tls:
        tls.unwrap()


def test_a_client_that_never_asks_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE", 0.1)
    listener, http = server._listen(0), server._http(lambda *_: None)
    running = threading.Thread(target=lambda: asyncio.run(http.serve([listener])))
    running.start()
    with connect(listener.getsockname()[1]) as connection:
        assert connection.recv(1) == b""
    http.should_exit = True
    running.join(60)
    assert not running.is_alive()
