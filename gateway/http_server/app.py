"""What each path answers: health checks, the engine's open routes passed on both ways, refusals for the rest.

An ASGI application without a framework: nothing is between a client and the engine but the checks.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from common.errors import JobError, UnavailableError
from common.figures import engine_status
from common.job_record import JobRecord, Outcome
from common.masking import Mask
from common.tasks import cancel
from gateway.deliver import Head, Upstream, as_job_error
from gateway.error_events import error_event
from gateway.errors import make_presentable
from gateway.http_server.access import Access
from gateway.http_server.bodies import Bodies, ClientLeftError, Reader, Receive, UnsupportedBodyError
from gateway.http_server.refusals import Headers, MethodNotAllowedError, error_of_the_framework, refusal, refuse
from gateway.http_server.turns import Turns
from gateway.request import METHODS, UpstreamRequest
from gateway.routes import checked_query, requested_path
from sglang_engine.supervisor import State, Supervisor

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Route = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application for one path."""

# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1; `connection` names more of them.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Not for the engine either: what the worker's own client sets, the client's key and cookies, and what would make the
# engine answer for other origins (CORS is this server's business).
_NOT_FOR_THE_ENGINE = _HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"authorization",
    b"x-api-key",
    b"cookie",
    b"origin",
}
# Nor for the client: what this server sets itself.
_NOT_FOR_THE_CLIENT = _HOP_BY_HOP | {b"content-length", b"date", b"server"}

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_HEALTH, _LIVE, _READY = "/health", "/health/live", "/health/ready"


@dataclass(eq=False)
class _Visit:
    """One request, from its head to the last byte of its answer."""

    path: str
    send: Send
    task: asyncio.Task[Any]
    record: JobRecord
    has_begun: bool = False
    """Whether a part of the answer has been sent."""
    is_stream: bool = False
    is_over: bool = False
    has_left: bool = False
    broken_off: JobError | None = None

    async def start(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        headers = [*headers, (b"x-request-id", self.record.job_id.encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data: bytes, *, more: bool) -> None:
        self.is_over = not more
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    def leave(self) -> None:
        """Note that the client has hung up, which ends the request to the engine."""
        if not self.is_over:
            self.has_left = True
            self.task.cancel()

    def break_off(self, error: JobError) -> None:
        """End it with an error, whatever it is doing."""
        if not self.is_over:
            self.broken_off = error
            self.task.cancel()


class App:
    """The ASGI application. It answers before the engine runs, and after it has been given up."""

    def __init__(
        self,
        upstream: Upstream,
        supervisor: Supervisor,
        bodies: Bodies,
        access: Access,
        mask: Mask,
        *,
        turns: Turns,
        health_paths: frozenset[str],
        allowed_routes: frozenset[str],
        request_timeout_seconds: float,
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        """routes: this worker's own paths, besides those of the engine, for whoever shows the key."""
        self.idle = asyncio.Event()
        """Set while no request is in flight."""
        self.idle.set()
        self._upstream = upstream
        self._supervisor = supervisor
        self._bodies = bodies
        self._access = access
        self._mask = mask
        self.turns = turns
        self._allowed_routes = allowed_routes
        self._request_timeout_seconds = request_timeout_seconds
        self._visits: set[_Visit] = set()
        self._closed: JobError | None = None
        self._is_dead = False
        health: dict[str, Route] = dict.fromkeys(health_paths, self.health)
        own = {path: self._guarded(route) for path, route in (routes or {}).items()}
        # HEALTH_CHECK_PATH, which is among the health paths, wins: who sets it means what RunPod means by it.
        self._routes: dict[str, Route] = {**own, _LIVE: self._live, _READY: self._ready, **health}

    @property
    def in_flight(self) -> int:
        """How many requests are being read or answered."""
        return len(self._visits)

    def close(self, error: JobError) -> None:
        """From now on, refuse new requests with this error and fail health checks. Those in flight go on."""
        self._closed = error

    def fail(self, error: JobError) -> None:
        """From now on, answer every path with this error: nothing here will ever work."""
        make_presentable(error, self._mask)
        self._closed, self._is_dead = error, True

    async def break_off(self, error: JobError, *, timeout_seconds: float) -> None:
        """End every request in flight with this error; return when they have ended, or at the timeout."""
        for visit in self._visits:
            visit.break_off(error)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self.idle.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise NotImplementedError  # uvicorn then does without
        path = scope["raw_path"].decode("latin-1")
        if (route := self._routes.get(path)) is not None:
            await route(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - uvicorn runs each request in a task
        visit = _Visit(path, send, task, JobRecord.begin(_request_id(scope)))
        self._visits.add(visit)
        self.idle.clear()
        try:
            with visit.record.in_context():
                await self._serve(visit, scope, receive)
        finally:
            visit.record.end(Outcome.CANCELLED)  # unless it has ended otherwise
            self._visits.discard(visit)
            if not self._visits:
                self.idle.set()

    async def health(self, scope: Scope, _: Receive, send: Send) -> None:
        """204 while the engine starts, 200 once it is warm, 503 when it will not answer any more.

        `/health` says more: the engine's state, since when, and how many requests are in flight.
        """
        error = self._error_for_health()
        if error is not None:
            await refuse(send, error, scope["path"])
        else:
            is_ready, tells = self._supervisor.is_ready, scope["path"] == _HEALTH
            body = json.dumps(engine_status()).encode() if is_ready and tells else b""
            await _answer(send, HTTPStatus.OK if is_ready else HTTPStatus.NO_CONTENT, body)

    def _guarded(self, route: Route) -> Route:
        """The route, for whoever shows the key."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                self._access.check(scope["path"], dict(scope["headers"]))
            except JobError as error:
                await refuse(send, error, scope["path"])
            else:
                await route(scope, receive, send)

        return guarded

    async def _live(self, _: Scope, __: Receive, send: Send) -> None:
        """200 for as long as this process answers: for those who restart what does not."""
        if self._is_dead and self._closed is not None:
            await refuse(send, self._closed, _LIVE)
        else:
            await _answer(send, HTTPStatus.OK)

    async def _ready(self, scope: Scope, _: Receive, send: Send) -> None:
        """200 while requests are answered at once, else 503: for those who take every 2xx for ready."""
        error = self._error_for_health()
        if error is None and not self._supervisor.is_ready:
            error = UnavailableError(f"the engine is {self._supervisor.state}")
        if error is not None:
            await refuse(send, error, scope["path"])
        else:
            await _answer(send, HTTPStatus.OK)

    def _error_for_health(self) -> JobError | None:
        if self._closed is None and self._supervisor.state in (State.FAILED, State.STOPPED):
            return UnavailableError(self._supervisor.failure or "the engine has been stopped")
        return self._closed

    async def _serve(self, visit: _Visit, scope: Scope, receive: Receive) -> None:
        """Answer a request, whatever happens to it."""
        try:
            with self._bodies.reader() as reader:
                headers = dict(scope["headers"])
                try:
                    request = await self._admit(visit, scope, headers, receive, reader)
                except JobError:
                    if b"expect" not in headers:  # else its client waits for us, and sends nothing yet
                        await reader.discard(receive, _announced_bytes(headers))
                    raise
                await self._pass_on(visit, request, receive)
        except ClientLeftError:
            pass
        except asyncio.CancelledError:
            if visit.has_left:
                visit.task.uncancel()
            elif visit.broken_off is not None:
                visit.task.uncancel()
                await self._fail(visit, visit.broken_off)
            else:
                raise
        except Exception as exception:
            await self._fail(visit, exception)

    async def _admit(
        self, visit: _Visit, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, reader: Reader
    ) -> UpstreamRequest:
        """The request to the engine. Raises JobError for one that is refused, ClientLeftError if its client leaves."""
        if self._closed is not None:
            raise self._closed
        self._access.check(visit.path, headers)
        path = visit.record.route = requested_path(visit.path, self._allowed_routes)
        method: str = scope["method"]
        if method not in METHODS:
            raise MethodNotAllowedError(", ".join(METHODS))
        query = checked_query(scope["query_string"].decode("latin-1"))
        kept = tuple(_kept(scope["headers"], _NOT_FOR_THE_ENGINE))
        if _is_encoded(scope["headers"]):
            raise UnsupportedBodyError("compressed bodies are not accepted")
        body = await reader.read(receive, _announced_bytes(headers))
        # Of several types, the engine believes the first: it is enough that one of them says JSON.
        types = b",".join(_listed(kept, b"content-type"))
        return UpstreamRequest(
            method,
            path,
            body or None,
            query=query,
            token_ids=await self._bodies.check(body, types),
            headers=kept,
        )

    async def _pass_on(self, visit: _Visit, request: UpstreamRequest, receive: Receive) -> None:
        """Send a request to the engine, and its answer to the client as it comes."""
        watching = asyncio.create_task(_watch(visit, receive), name="watching for a client that hangs up")
        try:
            label = f"request {visit.record.job_id}"
            async with (
                self.turns.turn() if request.method == "POST" else nullcontext(),
                aclosing(self._upstream.pass_on(request, self._mask, label=label)) as parts,
            ):
                async for part in parts:
                    if isinstance(part, Head):
                        head = part
                        visit.is_stream = visit.record.streamed = head.is_stream
                    elif head.is_stream:
                        if not visit.has_begun:
                            await visit.start(head.status, _kept(head.headers, _NOT_FOR_THE_CLIENT))
                        await visit.body(part, more=True)
                    elif error := error_of_the_framework(head, part, visit.path):
                        raise error
                    else:
                        length = (b"content-length", str(len(part)).encode())
                        await visit.start(head.status, [*_kept(head.headers, _NOT_FOR_THE_CLIENT), length])
                        await visit.body(part, more=False)
            if head.is_stream:
                await visit.body(b"", more=False)
            visit.record.end(Outcome.COMPLETED if head.status < HTTPStatus.BAD_REQUEST else Outcome.FAILED, head.status)
        finally:
            await cancel(watching)

    async def _fail(self, visit: _Visit, exception: Exception) -> None:
        """Tell the client: as an answer if nothing has been sent yet, else as the stream's last event."""
        error = as_job_error(exception, request_timeout_seconds=self._request_timeout_seconds)
        make_presentable(error, self._mask)
        visit.record.error_type = error.type
        if not visit.has_begun:
            status, headers, body = refusal(error, visit.path)
            await visit.start(status, headers)
            await visit.body(body, more=False)
        elif visit.is_stream and not visit.is_over:
            await visit.body(error_event(error, visit.path).encode("utf-8", "replace"), more=False)
        visit.record.end(Outcome.FAILED, error.code)


async def _watch(visit: _Visit, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    visit.leave()


def _kept(headers: list[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    """The headers that are passed on: neither dropped ones, nor those that `Connection` names, nor CORS."""
    named = {word.lower() for word in _listed(headers, b"connection")}
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and lower not in named and not lower.startswith(b"access-control-")
    ]


def _listed(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """What all headers of a name list, separated by commas."""
    words = [word.strip() for key, value in headers if key.lower() == name for word in value.split(b",")]
    return [word for word in words if word]


def _is_encoded(headers: Headers) -> bool:
    """Whether a body is compressed, or anything else has been done to it besides cutting it into chunks."""
    return any(coding.lower() != b"identity" for coding in _listed(headers, b"content-encoding")) or any(
        coding.lower() != b"chunked" for coding in _listed(headers, b"transfer-encoding")
    )


def _announced_bytes(headers: Mapping[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def _request_id(scope: Scope) -> str:
    """The client's own `X-Request-Id`, if it is plain; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
            own: bytes = value
            return own.decode("ascii")
    return f"req_{secrets.token_hex(8)}"


async def _answer(send: Send, status: int, body: bytes = b"") -> None:
    """body: JSON."""
    headers = [] if status == HTTPStatus.NO_CONTENT else [(b"content-length", str(len(body)).encode())]
    if body:
        headers.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
