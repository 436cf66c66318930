"""A web server next to the program's own work, in the same event loop.

uvicorn, with bounds on how much a client may send and how long it may leave things open (`Bounds`). uvicorn itself has
none for the HTTP parser used here (httptools); `h11_max_incomplete_event_size` is for the slower one. What is refused
here, before the app sees it, is answered as the app would: with an error in OpenAI's shape.

Two more things that uvicorn leaves open with httptools: a request that also offers another protocol keeps its body, and
HTTP/1.0, which knows no chunks, gets none.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from common.addresses import listen
from common.errors import JobError, json_text

log = logging.getLogger("worker.web")

CLOSE_SECONDS = 1.0  # requests that are still open at the end are cut off after this time
# How long a refused client has to read its answer, and how much more it may send meanwhile. Closed at once, with more
# of its request on the way, the connection would be reset, and the answer lost with it.
LAST_WORDS_SECONDS = 5.0
MOST_DROPPED_BYTES = 1024 * 1024
MOST_LINGERING = 256  # connections beyond the bound that are given this time
# How long clients are told to wait when they may try again; with less, hundreds of them would keep a starting worker
# busy.
RETRY_AFTER_SECONDS = 5

ErrorPayload = Callable[[JobError, str], dict[str, Any]]
"""An error as the body of an answer, in the form that clients of this path understand."""


class WebServerError(Exception):
    """The server did not start, or ended unexpectedly."""


class PortInUseError(WebServerError):
    """Cannot listen on the address; the message names it."""


@dataclass(frozen=True)
class Bounds:
    """How much of a server one client can take up.

    connections: how many at once; any more get 503. head_bytes: a request's line and headers, and whatever else of it
    is not body (trailers, the framing of chunks); more gets 431. head_seconds: from the connection, or from a request's
    first byte, to the end of its headers; longer gets 408, and so does a connection on which nothing ever comes.
    body_seconds: from there to the body's end; 20 MB take 160 s at 1 Mbit/s. stall_seconds: how long a client may read
    none of an answer, like nginx's send_timeout; then its connection is aborted.
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


def _openai_payload(error: JobError, _: str) -> dict[str, Any]:
    return error.payload()


@asynccontextmanager
async def serving_on(
    listener: socket.socket,
    app: Any,
    *,
    accepted: Sequence[socket.socket] = (),
    bounds: Bounds = DEFAULT_BOUNDS,
    error_payload: ErrorPayload = _openai_payload,
) -> AsyncGenerator[None, None]:
    """The same on a socket that listens already.

    accepted: connections that somebody else has accepted on it. error_payload: the form of what is refused here.
    """
    config = uvicorn.Config(
        app,
        http=partial(_BoundedProtocol, bounds=bounds, error_payload=error_payload),  # type: ignore[arg-type]
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

    def __init__(self, *args: Any, bounds: Bounds, error_payload: ErrorPayload, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._bounds = bounds
        self._error_payload = error_payload
        self._refused = False
        self._dropped_bytes = 0
        self._receiving = False
        """Whether a request has begun to arrive and is not complete."""
        self._has_head = False
        """Whether its headers are complete."""
        self._overhead_bytes = 0
        """Bytes received of this request, minus an allowance for its body."""
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"all {self._bounds.connections} connections of this server are taken; try again a little later",
            )
        else:
            self._expect_within(self._bounds.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._expect_nothing()
        self._cancel_stall()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > MOST_DROPPED_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if not self._receiving:
            self._receiving = True
            self._has_head = False
            self._overhead_bytes = 0
            if self.cycle is None or self.cycle.response_complete:
                self._expect_within(self._bounds.head_seconds)
        self._overhead_bytes += len(data)
        self._parse(data)
        if self._overhead_bytes > self._bounds.head_bytes:
            self._refuse_large_head()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request")

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Read a request as if it had not offered another protocol, which a server may always do.

        The parser ends such a request with its head, and would take its body for the next request
        (https://github.com/Kludex/uvicorn/issues/2722). Java's HttpClient and `curl --http2` offer `h2c` with each
        request. rest: what came after the head.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not a proxy: CONNECT is not accepted")
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join([*lines, b"", rest]))

    def on_message_begin(self) -> None:
        self._receiving = True
        self._has_head = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > self._bounds.head_bytes:
            self._refuse_large_head()
        if self._refused:
            raise _RefusedError  # so that the parser stops here
        super().on_headers_complete()
        self.headers = []  # what follows are trailers
        if self.scope["http_version"] != "1.1":
            _send_without_chunks(self.cycle)
        self._has_head = True
        self._overhead_bytes = 0
        self._expect_within(self._bounds.body_seconds)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        # The smallest chunk, one byte, has six bytes of framing.
        self._overhead_bytes = max(0, self._overhead_bytes - 8 * len(body))

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
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

    def shutdown(self) -> None:
        if self._refused:
            self.transport.abort()
        else:
            super().shutdown()

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
            part, seconds = ("body", "body_seconds") if self._has_head else ("line and headers", "head_seconds")
            within = f"within {getattr(self._bounds, seconds):g} s"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's {part} did not arrive {within}")
            self.transport.close()  # it has been waited for long enough

    def _refuse_large_head(self) -> None:
        message = f"the request's line, headers and framing are larger than {self._bounds.head_bytes} bytes"
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error, unless an answer has begun, and hang up."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._expect_nothing()
        self.pipeline.clear()
        has_begun = False
        if self.cycle is not None and not self.cycle.response_complete:
            has_begun = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        if not has_begun:
            self._write_refusal(status, message)
        if has_begun or len(self.connections) > self._bounds.connections + MOST_LINGERING:
            self.transport.close()
        else:
            self.transport.write_eof()
            self.flow.resume_reading()  # what comes is dropped
        self.loop.call_later(LAST_WORDS_SECONDS, self.transport.abort)

    def _write_refusal(self, status: HTTPStatus, message: str) -> None:
        path = self.url.partition(b"?")[0].decode("latin-1")
        body = json_text(self._error_payload(JobError(message, code=status), path)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
        lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))

    def _abort_stalled(self) -> None:
        log.info("a client read none of its answer for %g s: closing its connection", self._bounds.stall_seconds)
        self.transport.abort()

    def _cancel_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class _RefusedError(Exception):
    """The request that is being parsed has been refused."""


def _send_without_chunks(cycle: RequestResponseCycle) -> None:
    """End an answer of no known length with the connection, as HTTP/1.0 does; uvicorn would send chunks."""
    send = cycle.send

    async def unframed(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)  # type: ignore[arg-type]

    cycle.chunked_encoding = False
    cycle.send = unframed  # type: ignore[assignment, method-assign]


@contextmanager
def listening(host: str, port: int, port_setting: str = "") -> Generator[socket.socket, None, None]:
    """A socket that listens on this address for the length of this context. Raises PortInUseError.

    port_setting: what chooses the port, for the error.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        is_the_port = port_setting and error.errno in (errno.EADDRINUSE, errno.EACCES)
        hint = f"; {port_setting} chooses another port" if is_the_port else ""
        # A number below zero is the resolver's; the text of others repeats the address.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        raise PortInUseError(f"cannot listen on {host}:{port}: {reason}{hint}") from None
    with listener:
        yield listener
