"""HTTP/1.1 over kept connections to one server, at next to no cost for each request: the engine's, or the platform's.

A general-purpose client has a cost for each connection and for each event that it reads. Here no more than a little is
read before somebody asks for it. What else arrives collects in the socket and is then read in one go; if nobody takes
the answer, the server is slowed down. docs/performance.md says what that saves. The protocol is parsed by httptools, as
in uvicorn.

Request bodies are in memory, there is no HEAD, and one request at a time on each connection. There are as many
connections as file descriptors allow (`common.descriptors`); requests beyond that wait for their turn. No redirects are
followed and no proxies are used. What goes wrong is raised as an httpx.TransportError of the kind that httpx's own
transport raises: PoolTimeout, ConnectError, ConnectTimeout, WriteTimeout, ReadTimeout, ReadError, RemoteProtocolError.
"""

from __future__ import annotations

import asyncio
import os
import select
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import httptools
import httpx

from common.descriptors import connections_allowed, lacks_descriptors

# A body is handed to the kernel in pieces, each when the one before it is gone. Smaller pieces cost more calls.
WRITE_PIECE_BYTES = 256 * 1024
# uvicorn's heads are a few hundred bytes; h11, its other parser, takes up to 64 KB.
MAX_HEAD_BYTES = 64 * 1024
# Between two attempts to get a file descriptor; one becomes free when any request ends.
DESCRIPTOR_PAUSE_SECONDS = 0.1
# A server that sends this much before anybody asks for more is fast. Its answer is then read ahead, up to so many
# bytes, since the socket's own buffer (128 KiB at first) would fill and hold it back.
FULL_CHUNK_BYTES = 16 * 1024
READ_AHEAD_BYTES = 512 * 1024
# How much is taken out of a socket at a time where the event loop does not read it.
COLLECTED_BYTES = 64 * 1024
# How often the socket of a held answer is looked at, so that its end is noticed: a stream's end may be 50 ms late at
# the most. Timers may go off a little early; a hold is over then too.
LOOK_SECONDS = 0.03
EARLY_SECONDS = 0.001


@dataclass(frozen=True)
class Timeouts:
    """In seconds; None waits forever.

    pool: for a turn and a connection. connect: for each attempt at a connection. write: for each piece of the request.
    read: for the whole head of the answer, and then for each piece of its body.
    """

    connect: float | None
    read: float | None
    write: float | None
    pool: float | None


class _SpokeFirstError(httpx.RemoteProtocolError):
    """Something came on a kept connection before the request had been sent: an answer to an earlier request."""


class Connections:
    """Connections to one server, each kept for a while for the next request."""

    def __init__(self, host: str, port: int, *, keepalive_seconds: float, tls: ssl.SSLContext | None = None) -> None:
        """keepalive_seconds: how long a connection may be idle; less than the server allows. tls: for https."""
        self._host = host
        self._port = port
        self._tls = tls
        self._keepalive_seconds = keepalive_seconds
        self._idle: dict[Connection, float] = {}  # since when; the most recent one is last
        self._turns = asyncio.Semaphore(connections_allowed())

    async def request(self, head: bytes, body: bytes, timeouts: Timeouts) -> Connection:
        """Send a request; return its connection with the head of the answer. `release` it when done with the answer.

        head: the request line and the headers, up to the empty line. Raises httpx.TransportError.
        """
        await self._take_turn(timeouts.pool)
        try:
            return await self._send(head, body, timeouts)
        except BaseException:
            self._turns.release()
            raise

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request if the answer was read to its end; else close it."""
        self._turns.release()
        if connection.can_be_reused:
            self._idle[connection] = time.monotonic()
        else:
            connection.abort()

    def close(self) -> None:
        """Close the idle connections; the others close when they are released."""
        self._keepalive_seconds = 0.0
        for connection in list(self._idle):
            connection.abort()

    async def _take_turn(self, timeout_seconds: float | None) -> None:
        if self._turns.locked():
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._turns.acquire()
            except TimeoutError:
                raise httpx.PoolTimeout(f"no turn within {timeout_seconds:g} s") from None
        else:
            await self._turns.acquire()

    async def _send(self, head: bytes, body: bytes, timeouts: Timeouts) -> Connection:
        """Send a request on a kept connection, else on a new one; return when the head of its answer has arrived."""
        if (kept := self._idle_connection()) is not None:
            try:
                await kept.send(head, body, timeouts)
                return kept
            except _SpokeFirstError:
                pass  # the server cannot have read the whole request, so it may be sent again
        connection = await self._connect(timeouts)
        await connection.send(head, body, timeouts)
        return connection

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if time.monotonic() - since < self._keepalive_seconds and connection.is_quiet:
                return connection
            connection.abort()
        return None

    async def _connect(self, timeouts: Timeouts) -> Connection:
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

    async def _try_to_connect(self, timeout_seconds: float | None) -> Connection:
        try:
            async with asyncio.timeout(timeout_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self._forget), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout_seconds} s") from None
        return connection

    def _forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)


class Connection(asyncio.Protocol):
    """One connection. Its owner calls the first half; the event loop and the parser call the second half."""

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf
        self._waits_until = inf
        self._is_held = False
        self._held_until = 0.0  # this and the two before it on the loop's clock
        self._read_seconds: float | None = None
        self._pieces: list[bytes] = []
        self._read_ahead_bytes = 0
        self._head_bytes = 0
        self._has_head = False
        self._is_over = True
        self._keeps_alive = False
        self._is_paused = False
        self._requests = 0
        self._is_sending = False
        self._is_full = False  # the kernel takes no more for now
        self._was_answered_early = False
        self._failure: httpx.TransportError | None = None

    async def send(self, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        """Send a request; return when the head of its answer has arrived.

        Raises httpx.TransportError. Whatever it raises, the connection is then closed.
        """
        try:
            await self._send(head, body, timeouts)
        except BaseException:
            self.abort()
            raise

    async def _send(self, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        self._parser = httptools.HttpResponseParser(self)
        read_seconds = self._read_seconds = timeouts.read
        self._pieces = []
        self._read_ahead_bytes = self._head_bytes = 0
        self._has_head = self._is_over = self._keeps_alive = False
        self._requests += 1
        self._is_sending = True
        if len(body) <= WRITE_PIECE_BYTES:
            self._transport.write(b"%b\r\n\r\n%b" % (head, body))
        else:
            await self._write_in_pieces(head, body, timeouts.write)
        self._is_sending = False
        until = self._time_in(read_seconds)
        while not self._has_head:
            if not await self._something_came(until):
                raise httpx.ReadTimeout(f"no response within {read_seconds:g} s")

    async def read(self) -> bytes:
        """What has arrived of the body, or else its next piece; empty at its end. Raises httpx.TransportError."""
        if self._is_paused:
            self._collect()
        if not self._pieces and not self._is_over:
            until = self._time_in(self._read_seconds)
            while not self._pieces and not self._is_over:
                if not await self._something_came(until):
                    raise httpx.ReadTimeout(f"nothing came for {self._read_seconds:g} s")
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._read_ahead_bytes >= READ_AHEAD_BYTES and not self._is_over:
            self._go_on()
        self._read_ahead_bytes = 0
        return body

    async def hold(self, seconds: float) -> None:
        """Let what comes collect for so long, or until the answer is complete; `read` then returns all of it.

        It collects in the socket, which is looked at only now and then.
        """
        self._collect()  # the end may have come already
        if self._is_over or self._failure is not None:
            return
        self._waits_until = inf
        self._held_until = self._loop.time() + seconds
        self._is_held = True
        self._waiter = self._loop.create_future()
        self._looking = self._loop.call_later(min(seconds, LOOK_SECONDS), self._look)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._is_held = False
            self._looking.cancel()

    def _look(self) -> None:
        """Take what has collected in the socket of a held connection, which may be the end of the answer."""
        self._collect()
        if (left := self._held_until - self._loop.time()) > EARLY_SECONDS:
            self._looking = self._loop.call_later(min(left, LOOK_SECONDS), self._look)
        else:
            self._wake()

    def _collect(self) -> None:
        """Take what has collected in the socket of a paused connection: one call, for which the event loop needs five.

        Over TLS only the event loop can read it, a moment later. So it is with the end of a connection.
        """
        if not self._is_paused or not self.is_open:
            return
        if self._is_encrypted:
            self._go_on()
            return
        try:
            data = os.read(self._descriptor, COLLECTED_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(_broken(error))
            return
        if data:
            self.data_received(data)
        else:
            self._go_on()

    async def _write_in_pieces(self, head: bytes, body: bytes, timeout_seconds: float | None) -> None:
        """Hand the request to the kernel, no faster than it takes it; stop if an answer comes before the end."""
        pieces = memoryview(body)
        self._transport.write(b"".join((head, b"\r\n\r\n", pieces[:WRITE_PIECE_BYTES])))
        for begin in range(WRITE_PIECE_BYTES, len(body), WRITE_PIECE_BYTES):
            until = self._time_in(timeout_seconds)
            while self._is_full and not self._has_head:
                if not await self._something_came(until):
                    raise httpx.WriteTimeout(f"the server read nothing for {timeout_seconds:g} s")
            if self._has_head:
                return
            self._transport.write(pieces[begin : begin + WRITE_PIECE_BYTES])

    def _time_in(self, seconds: float | None) -> float:
        return inf if seconds is None else self._loop.time() + seconds

    async def _something_came(self, until: float) -> bool:
        """Return when something has arrived, or the kernel takes more; False if nothing did until this time.

        Raises what broke the connection.
        """
        if self._failure is not None:
            raise self._failure
        self._waits_until = until
        if until < self._alarm_at:
            self._set_alarm(until)
        self._waiter = self._loop.create_future()
        self._go_on()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _set_alarm(self, at: float) -> None:
        """Have `_check_time` called. One timer serves many waits: it is set again only when it goes off.

        A timer for each wait, of which there is one an event, would cost more than reading the event.
        """
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = self._loop.call_at(at, self._check_time), at

    def _check_time(self) -> None:
        self._alarm, self._alarm_at = None, inf
        if self._waiter is None:
            return
        if self._loop.time() < self._waits_until:
            if self._waits_until < inf:
                self._set_alarm(self._waits_until)
        else:
            self._wake(something_came=False)

    @property
    def has_more(self) -> bool:
        """Whether `read` would return at once, with more of the body."""
        return bool(self._pieces)

    @property
    def status(self) -> int:
        """Of the answer whose head has arrived."""
        return int(self._parser.get_status_code())

    @property
    def is_over(self) -> bool:
        """Whether the whole answer has arrived."""
        return self._is_over

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, with nothing unread in its socket, not even an end of file."""
        return self.is_open and not self._unread.poll(0)

    @property
    def can_be_reused(self) -> bool:
        return self._is_over and self._keeps_alive and self.is_open and not self._was_answered_early

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._unread = select.poll()
        self._unread.register(self._descriptor, select.POLLIN)
        self._is_encrypted = transport.get_extra_info("sslcontext") is not None

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
        is_ahead = bool(self._pieces)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(httpx.RemoteProtocolError(f"this is not an HTTP response: {type(error).__name__}"))
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._break(httpx.RemoteProtocolError(f"the response's head is longer than {MAX_HEAD_BYTES} bytes"))
        self._pause_or_go_on(len(data), is_ahead=is_ahead)
        if not self._is_held or self._is_over or self._read_ahead_bytes >= READ_AHEAD_BYTES:
            self._wake()

    def _pause_or_go_on(self, received_bytes: int, *, is_ahead: bool) -> None:
        """Stop reading until somebody asks for more, unless the server is fast, and there is room to read ahead.

        is_ahead: whether nobody had yet asked for what came before this. A stream whose reader keeps up is not paused:
        that costs more than it saves. Once the answer is over, reading goes on, to notice a close.
        """
        self._read_ahead_bytes += received_bytes
        if self._is_over or FULL_CHUNK_BYTES <= self._read_ahead_bytes < READ_AHEAD_BYTES:
            self._go_on()
        elif is_ahead and not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        if self._is_paused and self.is_open:
            self._is_paused = False
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self._is_over:
            if error is None and self._has_head and self._ends_with_connection():
                self._is_over = True
            elif error is None:
                self._fail(httpx.RemoteProtocolError("the connection was closed before the response was complete"))
            else:
                self._fail(_broken(error))
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

    def _wake(self, *, something_came: bool = True) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(something_came)


def _broken(error: Exception) -> httpx.ReadError:
    return httpx.ReadError(f"the connection broke: {type(error).__name__}")
