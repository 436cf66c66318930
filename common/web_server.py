"""A web server next to the program's own work, in the same event loop.

uvicorn, with bounds on how much a client may send and how long it may leave things open (`Bounds`). uvicorn itself has
none for the HTTP parser used here (httptools); `h11_max_incomplete_event_size` is for the slower one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.addresses import listen

log = logging.getLogger("worker.web")

CLOSE_SECONDS = 1.0  # requests that are still open at the end are cut off after this time
LAST_WORDS_SECONDS = 5.0  # how long a refused client has to read its answer before its connection is aborted


class WebServerError(Exception):
    """The server did not start, or ended unexpectedly."""


class PortInUseError(WebServerError):
    """Cannot listen on the address; the message names it."""


@dataclass(frozen=True)
class Bounds:
    """How much of a server one client can take up.

    connections: how many at once; any more get 503. head_bytes: a request's line and headers, and whatever else of it
    is not body (trailers, the framing of chunks); more gets 431 (uvicorn reads up to 256 KiB at a time, so a client can
    exceed it by that much). head_seconds: from the connection, or from a request's first byte, to the end of its
    headers; longer gets 408, and so does a connection on which nothing ever comes. body_seconds: from there to the
    body's end; 20 MB take 160 s at 1 Mbit/s. stall_seconds: how long a client may read none of an answer, like nginx's
    send_timeout; then its connection is aborted.
    """

    connections: int = 4096
    head_bytes: int = 64 * 1024
    head_seconds: float = 20.0
    body_seconds: float = 300.0
    stall_seconds: float = 60.0


DEFAULT_BOUNDS = Bounds()


@asynccontextmanager
async def serving(
    app: Any, host: str, port: int, *, bounds: Bounds = DEFAULT_BOUNDS, port_setting: str = ""
) -> AsyncGenerator[int, None]:
    """Serve an ASGI app for the length of this context; gives the port, which the system chooses if it is 0.

    port_setting: the flag or variable that chooses the port, named if it is in use.
    Raises PortInUseError, and WebServerError if the server does not start or breaks later. Before leaving, release any
    requests that are still waiting for an answer.
    """
    with listening(host, port, port_setting) as listener:
        async with serving_on(listener, app, bounds=bounds):
            yield listener.getsockname()[1]


@asynccontextmanager
async def serving_on(
    listener: socket.socket, app: Any, *, accepted: Sequence[socket.socket] = (), bounds: Bounds = DEFAULT_BOUNDS
) -> AsyncGenerator[None, None]:
    """The same on a socket that listens already. accepted: connections that somebody else has accepted on it."""
    config = uvicorn.Config(
        app,
        http=partial(_BoundedProtocol, bounds=bounds),  # type: ignore[arg-type]
        ws="none",
        proxy_headers=False,  # who the client is makes no difference here
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,  # type: ignore[arg-type]
    )
    server = _Server(config, accepted)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    started = asyncio.create_task(server.has_started.wait())
    try:
        await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            raise WebServerError("the web server did not start") from running.exception()
        with _broken_off_with(running):
            yield
    finally:
        started.cancel()
        server.should_exit = True
        await asyncio.wait({running})
    if not running.cancelled() and (error := running.exception()):
        raise WebServerError("the web server ended with an error") from error


@contextmanager
def _broken_off_with(running: asyncio.Task[None]) -> Generator[None, None, None]:
    """If the server ends by itself, cancel the body and raise WebServerError: nobody could reach it any more."""
    body, ended = asyncio.current_task(), False

    def break_off(_: object) -> None:
        nonlocal ended
        ended = True
        if body is not None:
            body.cancel()

    running.add_done_callback(break_off)
    try:
        yield
    except asyncio.CancelledError:
        if not ended or body is None or body.uncancel() > 0:
            raise
        raise WebServerError("the web server broke") from running.exception()
    finally:
        running.remove_done_callback(break_off)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, accepted: Sequence[socket.socket]) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()
        self._accepted = accepted

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the program."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Like uvicorn's, but that exits the process if the app's start-up fails."""
        try:
            await super().startup(sockets)
        except SystemExit:
            raise WebServerError("the app's start-up failed; its log says why") from None
        for connection in self._accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._new_protocol, connection)
        self.has_started.set()

    def _new_protocol(self) -> asyncio.Protocol:
        """What uvicorn's own start-up makes for each connection."""
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


class _BoundedProtocol(HttpToolsProtocol):
    """One connection, within bounds."""

    def __init__(self, *args: Any, bounds: Bounds, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self._refused = False
        self._receiving = False
        """Whether a request has begun to arrive and is not complete."""
        self._overhead_bytes = 0
        """Bytes received of this request, minus an allowance for its body."""
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._expect_within(self._bounds.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._expect_nothing()
        self._cancel_stall()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._receiving:
            self._receiving = True
            self._overhead_bytes = 0
            if self.cycle is None or self.cycle.response_complete:
                self._expect_within(self._bounds.head_seconds)
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self._overhead_bytes > self._bounds.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._receiving = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._overhead_bytes = 0
        self._expect_within(self._bounds.body_seconds)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        # The smallest chunk, one byte, has six bytes of framing.
        self._overhead_bytes = max(0, self._overhead_bytes - 8 * len(body))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving = False
        self._overhead_bytes = 0
        self._expect_nothing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._bounds.stall_seconds, self._abort_stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stall()

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._overdue)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self) -> None:
        if self.pipeline or self.flow.read_paused:  # we are not reading; that is not the client's fault
            self._expect_within(self._bounds.body_seconds)
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer with a status, unless an answer has begun, and hang up."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._expect_nothing()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.encode("ascii"))
        self.transport.close()
        self.loop.call_later(LAST_WORDS_SECONDS, self.transport.abort)

    def _abort_stalled(self) -> None:
        log.info("a client read none of its answer for %g s: closing its connection", self._bounds.stall_seconds)
        self.transport.abort()

    def _cancel_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


@contextmanager
def listening(host: str, port: int, port_setting: str = "") -> Generator[socket.socket, None, None]:
    """A socket that listens on this address for the length of this context. Raises PortInUseError.

    port_setting: what chooses the port, for the error.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        hint = f"; {port_setting} chooses another port" if port_setting else ""
        reason = os.strerror(error.errno) if error.errno else error  # asyncio's text repeats the address
        raise PortInUseError(f"cannot listen on {host}:{port}: {reason}{hint}") from None
    with listener:
        yield listener
