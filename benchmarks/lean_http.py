"""An HTTP/1.1 server that costs next to nothing, so that only the worker is measured, and not what is around it.

Reads a request and calls a function, which answers now or later. No pipelining, no chunked requests, no keep-alive
limits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

HEAD = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\n"


@dataclass
class Exchange:
    """One request, and the connection to answer it on."""

    method: str
    path: str
    body: bytes
    transport: asyncio.Transport

    def answer(self, status: int, body: bytes = b"", content_type: bytes = b"application/json") -> None:
        """Send a whole answer."""
        head = HEAD % (status, b"OK", content_type)
        self.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    def begin_stream(self) -> None:
        """Begin an answer of server-sent events."""
        self.write(HEAD % (200, b"OK", b"text/event-stream") + b"transfer-encoding: chunked\r\n\r\n")

    def write_event(self, data: bytes) -> None:
        """Send one chunk of the stream; an empty one ends it."""
        self.write(b"%x\r\n%s\r\n" % (len(data), data))

    def write(self, data: bytes) -> None:
        """Send bytes, unless the caller has left."""
        if not self.transport.is_closing():
            self.transport.write(data)


class _Connection(asyncio.Protocol):
    def __init__(self, respond: Callable[[Exchange], None]) -> None:
        self._respond = respond
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self._respond(Exchange(method, path, rest[:length], self._transport))


async def serve(
    respond: Callable[[Exchange], None], host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Listen; the caller closes the server."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Connection(respond), host, port, backlog=4096, ssl=tls)
