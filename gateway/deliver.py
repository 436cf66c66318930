"""One request's way to the engine and back: send it, send it again if its engine dies, map its errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from common import job_record
from common.errors import AnswerCutOffError, JobError, UnavailableError, type_and_place
from common.http1 import LOOK_SECONDS, Connection
from common.masking import Mask
from gateway import response, sse
from gateway.errors import (
    EngineTimeoutError,
    ResponseTooLargeError,
    UpstreamError,
    from_response,
    presentable_body,
)
from gateway.pacing import pacer_of
from gateway.request import UpstreamRequest
from gateway.response import ErrorEvent, Output
from gateway.usage import Watch
from gateway.vocabulary import Vocabulary
from sglang_engine.supervisor import Exchange, Supervisor
from sglang_engine.suspects import Ticket
from sglang_engine.transport import CONNECTION, EngineTransport

log = logging.getLogger("worker.gateway")

# SGLang's uvicorn closes a connection after 5 idle seconds (SGLANG_TIMEOUT_KEEP_ALIVE). We must close ours first, or a
# request could be sent on a connection that is just being closed.
KEEPALIVE_SECONDS = 2.0
CONNECT_TIMEOUT_SECONDS = 10.0


class _EngineClient(httpx.AsyncClient):
    """An httpx client without what only strangers need, cookies, redirects and authentication, a third of its cost."""

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = None,
        follow_redirects: Any = False,
    ) -> httpx.Response:
        """Send a request; with `stream`, return when the head of its answer is there."""
        answer = await self._transport.handle_async_request(request)
        answer.request = request
        if not stream:
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        return answer


def create_client(base_url: str, *, api_key: str | None, request_timeout_seconds: float) -> httpx.AsyncClient:
    """The HTTP client for a worker's engine; there is one."""
    headers = {"Accept-Encoding": "identity"}  # streams are framed on the raw bytes
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    url = httpx.URL(base_url)
    return _EngineClient(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(request_timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS),
        transport=EngineTransport(url.host, url.port or 80, keepalive_seconds=KEEPALIVE_SECONDS),
        trust_env=False,
    )


_Headers = list[tuple[bytes, bytes]]
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Head:
    """The head of the engine's answer, as it came."""

    status: int
    headers: _Headers
    is_stream: bool
    """Whether its body is a stream of events."""


class Upstream:
    """The engine as requests see it: one shared client, watched by the supervisor."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        supervisor: Supervisor,
        *,
        stream_flush_seconds: float | None,
        max_response_bytes: int,
    ) -> None:
        """stream_flush_seconds: see `pacing.pacer_of`. max_response_bytes: the limit on an unstreamed answer."""
        self._client = client
        self._supervisor = supervisor
        self._max_response_bytes = max_response_bytes
        self._vocabulary = Vocabulary(client)
        self._pacer = pacer_of(stream_flush_seconds)
        # What httpx would do again for each request.
        self._url = lru_cache(maxsize=64)(client.base_url.join)
        self._without_body = lru_cache(maxsize=64)(self._build)

    def deliver(self, request: UpstreamRequest, *, label: str) -> AsyncGenerator[Output, None]:
        """The outputs of a request: strings of whole events while the engine streams, or one parsed answer.

        If its engine dies before the first output, the request is sent to the next engine, unless the request itself
        is what kills them (`sglang_engine.suspects`). Closing this generator closes the connection, which is how a
        generation is aborted. label: how the log names the request.

        Raises JobError, ErrorEvent for an error inside the stream, and httpx.TransportError; `as_job_error` says what
        they mean to the client.
        """
        return self._replayed(request, self._forward, label)

    def pass_on(self, request: UpstreamRequest, mask: Mask, *, label: str) -> AsyncGenerator[Head | bytes, None]:
        """The engine's answer as it is: its head, then the body, in blocks of whole events or in one piece.

        The head comes with the first piece, so that until then the request can be sent again. Errors are the engine's
        own, without secrets and internals. Otherwise like `deliver`.
        """
        return self._replayed(request, partial(self._pass, mask=mask), label)

    async def _replayed(
        self,
        request: UpstreamRequest,
        forward: Callable[[UpstreamRequest, Exchange], AsyncGenerator[_Part, None]],
        label: str,
    ) -> AsyncGenerator[_Part, None]:
        ticket, record = Ticket(label), job_record.current()
        try:
            while not ticket.is_given_up:
                record.replayed = bool(ticket.deaths)
                async with self._supervisor.exchange(ticket) as exchange:
                    try:
                        if request.token_ids is not None:
                            await self._vocabulary.check(request.token_ids)
                        async with aclosing(forward(request, exchange)) as parts:
                            async for part in parts:
                                exchange.answered()
                                yield part
                        return
                    except (httpx.TransportError, JobError, ErrorEvent) as error:
                        if not await _died_of_its_engine(error, exchange):
                            raise
                        reason = await exchange.reason_of_loss()
                        if exchange.has_answer:
                            raise AnswerCutOffError(f"the answer was cut off: {reason}") from error
        finally:
            self._supervisor.suspects.clear(ticket)
        cause = "; the job is the likely cause" if ticket.is_likely_cause else ""
        raise UnavailableError(f"the engine died under this job, and again when it was sent once more: {reason}{cause}")

    async def _forward(self, request: UpstreamRequest, exchange: Exchange) -> AsyncGenerator[Output, None]:
        watch = Watch(job_record.current())
        async with self._send(request) as answer:
            exchange.progressed()
            if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
                raise from_response(answer.status_code, await self._whole(answer))
            if _is_event_stream(answer):
                chunks = _Observed(answer, exchange)
                try:
                    async with aclosing(response.events(chunks, self._pacer, watch.events)) as outputs:
                        async for output in outputs:
                            yield output
                finally:
                    watch.end_of_events()
            else:
                body = await self._whole(answer)
                content_type = answer.headers.get("Content-Type", "")
                whole = response.parsed(body, is_json=content_type.startswith("application/json"))
                watch.whole(len(body), whole)
                yield whole

    async def _pass(
        self, request: UpstreamRequest, exchange: Exchange, *, mask: Mask
    ) -> AsyncGenerator[Head | bytes, None]:
        watch = Watch(job_record.current())
        async with self._send(request) as answer:
            exchange.progressed()
            head = Head(answer.status_code, answer.headers.raw, is_stream=_is_event_stream(answer))
            if head.is_stream:
                chunks = _Observed(answer, exchange)
                try:
                    async with aclosing(response.raw_events(chunks, mask, lambda: exchange.engine_is_lost)) as blocks:
                        async for block in blocks:
                            watch.events(block)
                            if not exchange.has_answer:
                                yield head
                            yield block
                finally:
                    watch.end_of_events()
                return
            body = await self._whole(answer)
            if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and exchange.engine_is_lost:
                raise from_response(answer.status_code, body)
            if answer.status_code >= HTTPStatus.BAD_REQUEST:
                body = presentable_body(body, mask)
            else:
                response.check_complete(body, answer.headers.get("Content-Type", ""))
                watch.whole_bytes(body)
            yield head
            yield body

    async def _whole(self, answer: httpx.Response) -> bytes:
        """The body of an answer that is not streamed. The engine starts to send it only when it has all of it.

        Raises ResponseTooLargeError, and EngineTimeoutError if it is not complete within REQUEST_TIMEOUT_SECONDS.
        """
        pieces: list[bytes] = []
        size = 0
        seconds = self._client.timeout.read
        try:
            async with asyncio.timeout(seconds):
                async for piece in answer.aiter_bytes():
                    pieces.append(piece)
                    size += len(piece)
                    if size > self._max_response_bytes:
                        raise ResponseTooLargeError(
                            f"the engine's answer is larger than {self._max_response_bytes} bytes (MAX_RESPONSE_BYTES)"
                        )
        except TimeoutError:
            raise EngineTimeoutError(
                f"the engine began its answer but did not complete it within {seconds} s (REQUEST_TIMEOUT_SECONDS)"
            ) from None
        return b"".join(pieces)

    @asynccontextmanager
    async def _send(self, request: UpstreamRequest) -> AsyncGenerator[httpx.Response, None]:
        answer = await self._client.send(self._request(request), stream=True)
        try:
            yield answer
        finally:
            await answer.aclose()
            # httpx's response and its stream hold each other, and with them the request's body, which may be 20 MB:
            # it would stay until the garbage collector comes by.
            answer.stream = httpx.ByteStream(b"")

    def _request(self, request: UpstreamRequest) -> httpx.Request:
        """The request as httpx sends it."""
        if request.body and request.headers is None and not request.query:
            like = self._without_body(request.method, request.path)
            whole = httpx.Request(
                like.method,
                like.url,
                headers=like.headers,
                stream=httpx.ByteStream(request.body),
                extensions=like.extensions,
            )
            whole.headers["Content-Length"] = str(len(request.body))
            whole.read()
            return whole
        url = self._url(request.path)
        if request.query:
            url = url.copy_with(query=request.query.encode())
        headers: _Headers = list(request.headers or ())
        if request.body and request.headers is None:
            headers = [(b"Content-Type", b"application/json")]
        return self._client.build_request(request.method, url, content=request.body, headers=headers)

    def _build(self, method: str, path: str) -> httpx.Request:
        """What all requests with JSON bodies for one path have in common: nearly all of what httpx takes for each."""
        request = self._client.build_request(method, self._url(path), json={})
        del request.headers["Content-Length"]
        return request


def _is_event_stream(answer: httpx.Response) -> bool:
    return str(answer.headers.get("Content-Type", "")).startswith("text/event-stream")


async def _died_of_its_engine(error: Exception, exchange: Exchange) -> bool:
    """Whether a request failed because its engine died. A silent engine that turns out to be wedged is killed here."""
    match error:
        case httpx.TimeoutException():
            return await exchange.engine_is_wedged()
        case httpx.TransportError() | AnswerCutOffError():
            return await exchange.engine_gets_lost()
        case UpstreamError(code=code) if code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        case _:
            return exchange.engine_is_lost


class _Observed:
    """Chunks as they come, each noted as a sign of life. Not a generator, which would cost more per chunk."""

    def __init__(self, answer: httpx.Response, exchange: Exchange) -> None:
        # httpx's `aiter_raw` is the same behind a generator, which costs more per chunk.
        assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101 - it is an asynchronous client's
        self._chunks = aiter(answer.stream)
        self._exchange = exchange
        self._connection: Connection | None = answer.extensions.get(CONNECTION)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def hold(self, seconds: float, /) -> Awaitable[None]:
        # No longer than LOOK_SECONDS where the end of the stream could not be noticed meanwhile.
        return self._connection.hold(seconds) if self._connection else asyncio.sleep(min(seconds, LOOK_SECONDS))

    @property
    def has_more(self) -> bool:
        return self._connection is not None and self._connection.has_more

    def __anext__(self) -> Awaitable[bytes]:
        self._exchange.progressed()  # asking for the next chunk means that the last one arrived
        return self._chunks.__anext__()


def as_job_error(exception: Exception, *, request_timeout_seconds: float) -> JobError:
    """What a client is told about an exception from `Upstream.deliver` or `build_request`."""
    match exception:
        case JobError():
            return exception
        case ErrorEvent():
            return exception.error
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return UnavailableError("the engine cannot be reached")
        case httpx.PoolTimeout():
            return UnavailableError("too many requests are open for the file descriptors of this worker (ulimit -n)")
        case httpx.WriteTimeout():
            return EngineTimeoutError(f"the engine read none of the request for {request_timeout_seconds:g} s")
        case httpx.ReadTimeout():
            return EngineTimeoutError(f"the engine sent nothing for {request_timeout_seconds:g} s")
        case httpx.TransportError():
            return AnswerCutOffError("the connection to the engine broke before the answer was complete")
        case sse.EventTooLargeError():
            return AnswerCutOffError(str(exception))
        case _:
            log.error("unexpected %s in the handler:\n%s", *type_and_place(exception))
            return JobError()
