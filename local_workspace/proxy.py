"""A CONNECT proxy on loopback: the hosts of the workspace go to its server, everything else is refused.

It is also the guard against leaks: what runs with these proxy variables reaches no other host by accident.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress

from local_workspace.workspace import DOMAIN, SAMPLES_HOST

HEAD_LIMIT = 64 << 10  # bytes
HEAD_SECONDS = 30
CHUNK = 256 << 10  # bytes
OURS = re.compile(rf"([a-z0-9-]+\.)*{re.escape(DOMAIN)}", re.IGNORECASE)
# A tunnel ends with its client, with a client that says nothing or too much, or with the server.
ENDED = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError, asyncio.CancelledError)
REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"The local workspace lets nothing out of this machine. "
    b"See the README: Differences from Azure Machine Learning.\n"
)


def is_ours(host: str) -> bool:
    return host.lower() == SAMPLES_HOST or OURS.fullmatch(host) is not None


async def start(listener: socket.socket, server_port: int, refuse: Callable[[str], None]) -> asyncio.Server:
    """`refuse` is told each host that was asked for and not let through."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, *ENDED):
            try:
                await _serve(reader, writer, server_port, refuse)
            finally:
                writer.close()

    return await asyncio.start_server(serve, sock=listener, limit=HEAD_LIMIT)


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    server_port: int,
    refuse: Callable[[str], None],
) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
    method, _, rest = head.split(b"\r\n")[0].decode("latin-1").partition(" ")
    target = rest.partition(" ")[0]
    host, _, port = target.rpartition(":")
    if method != "CONNECT" or port != "443" or not is_ours(host):
        refuse(target if method == "CONNECT" else f"{method} {target}")
        writer.write(REFUSAL)
        await writer.drain()
        return
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", server_port, limit=CHUNK)
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(
        _copy(reader, to_writer, writer.get_extra_info("socket")),
        _copy(to_reader, writer, to_writer.get_extra_info("socket")),
    )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: socket.socket) -> None:
    with suppress(OSError):
        while chunk := await reader.read(CHUNK):
            _acknowledge(source)
            writer.write(chunk)
            await writer.drain()
    writer.close()


def _acknowledge(source: socket.socket) -> None:
    """Acknowledge at once. urllib3 turns Nagle's algorithm on for proxies, and so waits with the body of each
    request until its head is acknowledged: 40 ms a file otherwise. The option has to be set again each time.
    """
    if hasattr(socket, "TCP_QUICKACK"):  # Linux
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
