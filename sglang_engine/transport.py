"""The way to the engine: HTTP/1.1 on this machine, as a transport for httpx.

A general-purpose client has a cost for each connection and for each event that it reads. Here a connection is read only
while somebody asks for more. What arrives in between collects in the socket and is then read in one go; if nobody takes
the answer, the engine is slowed down. docs/performance.md says what that saves. The protocol is parsed by httptools, as
in uvicorn.

Plain HTTP to one address, with request bodies in memory and no HEAD; one request at a time on each connection. There
are as many connections as file descriptors allow (`common.descriptors`); requests beyond that wait for their turn.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import httptools
import httpx

from common.descriptors import connections_allowed, lacks_descriptors

# A body is handed to the kernel in pieces, each when the one before it is gone. Smaller pieces cost more calls.
WRITE_PIECE_BYTES = 256 * 1024
# uvicorn's heads are a few hundred bytes; h11, its other parser, takes up to 64 KB.
MAX_HEAD_BYTES = 64 * 1024
# Between two attempts to get a file descriptor; one becomes free when any request ends.
DESCRIPTOR_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class _Timeouts:
    """httpx's four timeouts, in seconds; None waits forever."""

    connect: float | None
    read: float | None
    write: float | None
    pool: float | None

    @classmethod
    def of(cls, request: httpx.Request) -> Self:
        given = request.extensions.get("timeout", {})
        return cls(given.get("connect"), given.get("read"), given.get("write"), given.get("pool"))


class _SpokeFirstError(httpx.RemoteProtocolError):
    """Something came on a kept connection before the request had been sent: an answer to an earlier request."""


class EngineTransport(httpx.AsyncBaseTransport):
    """Connections to one server, each kept for a while for the next request."""

    def __init__(self, host: str, port: int, *, keepalive_seconds: float) -> None:
        """keepalive_seconds: how long a connection may be idle; less than the server allows."""
        self._address = host, port
        self._keepalive_seconds = keepalive_seconds
        self._idle: dict[_Connection, float] = {}  # since when; the most recent one is last
        self._turns = asyncio.Semaphore(connections_allowed())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return with the head of its response, whose stream then gives whatever arrives.

        httpx's timeouts, each from when its part begins: `pool` for a turn and a connection, `connect` for each attempt
        at one, `write` for each piece of the request, `read` for the whole head and then for each piece of the body.

        Raises httpx.TransportError of the kinds that httpx's own transport raises: PoolTimeout, ConnectError,
        ConnectTimeout, WriteTimeout, ReadTimeout, ReadError, RemoteProtocolError.
        """
        timeouts = _Timeouts.of(request)
        await self._take_turn(timeouts.pool)
        try:
            connection = await self._send(request, timeouts)
        except BaseException:
            self._turns.release()
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=_Body(connection, self._release))

    async def aclose(self) -> None:
        """Close the idle connections; the others close with their responses."""
        for connection in list(self._idle):
            connection.abort()

    async def _take_turn(self, timeout_seconds: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout(f"no turn within {timeout_seconds:g} s") from None

    async def _send(self, request: httpx.Request, timeouts: _Timeouts) -> _Connection:
        """Send a request on a kept connection, else on a new one; return when the head of its response has arrived."""
        if (kept := self._idle_connection()) is not None:
            try:
                return await _send_on(kept, request, timeouts)
            except _SpokeFirstError:
                pass  # the engine cannot have read the whole request, so it may be sent again
        return await _send_on(await self._connect(timeouts), request, timeouts)

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if time.monotonic() - since < self._keepalive_seconds and connection.is_quiet:
                return connection
            connection.abort()
        return None

    async def _connect(self, timeouts: _Timeouts) -> _Connection:
        """A new connection. If there is no descriptor for it, or no answer, tries again for `pool` seconds.

        An engine that is alive accepts connections late if its event loop is busy, for example with the tokens of a
        long prompt; one that has died refuses them at once.
        """
        give_up_at = time.monotonic() + (timeouts.pool or 0.0)
        while True:
            try:
                return await self._try_to_connect(timeouts.connect)
            except httpx.ConnectTimeout:
                if time.monotonic() >= give_up_at:
                    raise
            except OSError as error:
                if not lacks_descriptors(error):
                    raise httpx.ConnectError(str(error)) from error
                if time.monotonic() >= give_up_at:
                    raise httpx.PoolTimeout("no file descriptor is free") from error
                await asyncio.sleep(DESCRIPTOR_PAUSE_SECONDS)

    async def _try_to_connect(self, timeout_seconds: float | None) -> _Connection:
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._forget), *self._address
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout_seconds} s") from None
        return connection

    def _release(self, connection: _Connection) -> None:
        self._turns.release()
        if connection.can_be_reused:
            self._idle[connection] = time.monotonic()
        else:
            connection.abort()

    def _forget(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)


async def _send_on(connection: _Connection, request: httpx.Request, timeouts: _Timeouts) -> _Connection:
    try:
        await connection.send(request, write_seconds=timeouts.write, read_seconds=timeouts.read)
    except BaseException:
        connection.abort()
        raise
    return connection


class _Body(httpx.AsyncByteStream):
    """The rest of a response, in pieces as large as they come. Not a generator, which would cost more per piece."""

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
    """One connection. Its owner calls the first half; the event loop and the parser call the second half."""

    def __init__(self, on_lost: Callable[[_Connection], None]) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None
        self._read_seconds: float | None = None
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._has_head = False
        self._is_over = True
        self._keeps_alive = False
        self._requests = 0
        self._is_sending = False
        self._is_full = False  # the kernel takes no more for now
        self._was_answered_early = False
        self._failure: httpx.TransportError | None = None

    async def send(self, request: httpx.Request, *, write_seconds: float | None, read_seconds: float | None) -> None:
        """Send a request; return when the head of its response has arrived. Raises httpx.TransportError."""
        self._parser = httptools.HttpResponseParser(self)
        self._read_seconds = read_seconds
        self._pieces = []
        self._head_bytes = 0
        self._has_head = self._is_over = self._keeps_alive = False
        self._requests += 1
        self._is_sending = True
        await self._write(request, write_seconds)
        self._is_sending = False
        try:
            async with asyncio.timeout(read_seconds):
                while not self._has_head:
                    await self._something_came()
        except TimeoutError:
            raise httpx.ReadTimeout(f"no response within {read_seconds:g} s") from None

    async def read(self) -> bytes:
        """What has arrived of the body, or else its next piece; empty at its end. Raises httpx.TransportError."""
        if not self._pieces and not self._is_over:
            try:
                async with asyncio.timeout(self._read_seconds):
                    while not self._pieces and not self._is_over:
                        await self._something_came()
            except TimeoutError:
                raise httpx.ReadTimeout(f"nothing came for {self._read_seconds:g} s") from None
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    async def _write(self, request: httpx.Request, timeout_seconds: float | None) -> None:
        """Hand the request to the kernel, no faster than it takes it; stop if an answer comes before the end."""
        head = [b"%s %s HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)]
        head += [b"%s: %s\r\n" % header for header in request.headers.raw]
        body = memoryview(request.content)
        self._transport.write(b"".join((*head, b"\r\n", body[:WRITE_PIECE_BYTES])))
        for begin in range(WRITE_PIECE_BYTES, len(body), WRITE_PIECE_BYTES):
            try:
                async with asyncio.timeout(timeout_seconds):
                    while self._is_full and not self._has_head:
                        await self._something_came()
            except TimeoutError:
                raise httpx.WriteTimeout(f"the engine read nothing for {timeout_seconds:g} s") from None
            if self._has_head:
                return
            self._transport.write(body[begin : begin + WRITE_PIECE_BYTES])

    async def _something_came(self) -> None:
        """Return when something has arrived, or the kernel takes more. Raises what broke the connection."""
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        if self.is_open:
            self._transport.resume_reading()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, with nothing unread in its socket, not even an end of file."""
        if not self.is_open:
            return False
        waiting = select.poll()
        waiting.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not waiting.poll(0)

    @property
    def can_be_reused(self) -> bool:
        return self._is_over and self._keeps_alive and self.is_open and not self._was_answered_early

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self._is_over:  # nothing was asked
            self.abort()
            return
        if not self._has_head and self._is_still_sending:
            if self._requests > 1:
                self._break(_SpokeFirstError("an answer came before the request was sent"))
                return
            self._was_answered_early = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(httpx.RemoteProtocolError(f"this is not an HTTP response: {type(error).__name__}"))
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._break(httpx.RemoteProtocolError(f"the response's head is longer than {MAX_HEAD_BYTES} bytes"))
        if not self._is_over and self.is_open:
            self._transport.pause_reading()  # until somebody asks; once it is over, reading goes on, to notice a close
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
        self._has_head = self.status >= 200  # a lower status only announces the response

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._is_over = self._has_head
        self._keeps_alive = self._parser.should_keep_alive()

    @property
    def _is_still_sending(self) -> bool:
        """Whether a part of the request has not reached the kernel yet: an answer now cannot be to all of it."""
        return self._is_sending or self._transport.get_write_buffer_size() > 0

    def _ends_with_connection(self) -> bool:
        return not {name.lower() for name, _ in self.headers} & {b"content-length", b"transfer-encoding"}

    def _break(self, failure: httpx.TransportError) -> None:
        self._fail(failure)
        self.abort()
        self._wake()

    def _fail(self, failure: httpx.TransportError) -> None:
        self._failure = self._failure or failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
