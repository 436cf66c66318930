"""The way to the engine: HTTP/1.1 on this machine, as a transport under httpx.

A general client has its price for each connection and for each event that it reads. Here a connection is read only
while somebody asks for more. What comes meanwhile gathers in the socket and is then had in one go; an engine whose
answer nobody takes is held back. docs/performance.md has what that brings. The protocol itself is known by httptools,
as in uvicorn.

Plain HTTP to one address, with request bodies in memory and no HEAD; any number of connections, each for one request at
a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httptools
import httpx


class EngineTransport(httpx.AsyncBaseTransport):
    """Connections to one server, kept for the next request for a while."""

    def __init__(self, host: str, port: int, *, keepalive_seconds: float) -> None:
        """keepalive_seconds: how long a connection may lie idle; less than the server allows it."""
        self._address = host, port
        self._keepalive_seconds = keepalive_seconds
        self._idle: dict[_Connection, float] = {}  # since when, the last one last

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return with the head of its response, whose stream then gives whatever has come.

        Of httpx's timeouts, connect and read are kept. Raises httpx.TransportError of the kinds that httpx's own
        transport raises: ConnectError, ConnectTimeout, ReadTimeout, ReadError, RemoteProtocolError.
        """
        timeouts = request.extensions.get("timeout", {})
        connection = self._idle_connection() or await self._connect(timeouts.get("connect"))
        try:
            await connection.send(request, timeouts.get("read"))
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=_Body(connection, self._release))

    async def aclose(self) -> None:
        """Close the idle connections; the others are closed with their responses."""
        for connection in list(self._idle):
            connection.abort()

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.is_open and time.monotonic() - since < self._keepalive_seconds:
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_seconds: float | None) -> _Connection:
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._forget), *self._address
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout_seconds:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    def _release(self, connection: _Connection) -> None:
        if connection.can_be_reused:
            self._idle[connection] = time.monotonic()
        else:
            connection.abort()

    def _forget(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)


class _Body(httpx.AsyncByteStream):
    """The rest of a response, in pieces as large as they come. No generator, which would cost more a piece."""

    def __init__(self, connection: _Connection, release: Callable[[_Connection], None]) -> None:
        self._connection: _Connection | None = connection
        self._release = release

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if self._connection is None or not (piece := await self._connection.read()):
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        if self._connection is not None:
            self._release(self._connection)
            self._connection = None


class _Connection(asyncio.Protocol):
    """One connection. The first half is its owner's, the second half the event loop's and the parser's."""

    def __init__(self, on_lost: Callable[[_Connection], None]) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None
        self._read_seconds: float | None = None
        self._pieces: list[bytes] = []
        self._has_head = False
        self._is_over = True
        self._keeps_alive = False
        self._failure: httpx.TransportError | None = None

    async def send(self, request: httpx.Request, read_seconds: float | None) -> None:
        """Send a request; return when the head of its response is here."""
        self._parser = httptools.HttpResponseParser(self)
        self._read_seconds = read_seconds
        self._pieces = []
        self._has_head = self._is_over = self._keeps_alive = False
        head = [b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)]
        head += [b"%s: %s\r\n" % header for header in request.headers.raw]
        self._transport.write(b"".join((*head, b"\r\n", request.content)))
        while not self._has_head:
            await self._something_came()

    async def read(self) -> bytes:
        """What has come of the body, or the next of it; empty at its end."""
        while not self._pieces and not self._is_over:
            await self._something_came()
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    async def _something_came(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        if self.is_open:
            self._transport.resume_reading()
        try:
            async with asyncio.timeout(self._read_seconds):
                await self._waiter
        except TimeoutError:
            raise httpx.ReadTimeout(f"nothing came for {self._read_seconds:g} s") from None
        finally:
            self._waiter = None

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    @property
    def can_be_reused(self) -> bool:
        return self._is_over and self._keeps_alive and self.is_open

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._is_over:  # nothing was asked
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"this is no HTTP response: {type(error).__name__}"))
            self.abort()
        if not self._is_over and self.is_open:
            self._transport.pause_reading()  # until somebody asks; when it is over, to notice the other side's close
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_over:
            if error is None and self._has_head and self._ends_with_connection():
                self._is_over = True
            elif error is None:
                self._fail(httpx.RemoteProtocolError("the connection was closed before the response was complete"))
            else:
                self._fail(httpx.ReadError(f"the connection broke: {type(error).__name__}"))
        self._on_lost(self)
        self._wake()

    def on_message_begin(self) -> None:
        if self._is_over:
            raise ValueError("more than one response")  # ends the parsing, and with it the connection
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._has_head = self.status >= 200  # what is less only announces the response

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_over = self._has_head
        self._keeps_alive = self._parser.should_keep_alive()

    def _ends_with_connection(self) -> bool:
        return not {name.lower() for name, _ in self.headers} & {b"content-length", b"transfer-encoding"}

    def _fail(self, failure: httpx.TransportError) -> None:
        self._failure = self._failure or failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
