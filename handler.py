"""The front desk: a job's input becomes one request to the engine, and the engine's answer the job's outputs.

Run it as `python handler.py`: with a platform's variables in the environment it is a worker; with `--rp_serve_api` it
serves the platform's API on this machine; with `--test_input` or a `test_input.json` it answers one job and exits.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path

import httpx
from dotenv import load_dotenv

import answers
import serverless
import streaming
from answers import ErrorEvent, Output
from engine import EngineConfig, configure, read_image_file, warnings_for
from engine_process import Engine
from engine_transport import EngineTransport
from errors import (
    AnswerCutOffError,
    EngineTimeoutError,
    EngineUnavailableError,
    JobError,
    UpstreamError,
    from_response,
    type_and_place,
)
from job_input import UpstreamRequest, build_request, unstreamed
from job_loop import Job, JobHandler
from masking import Mask
from settings import Settings
from supervisor import Exchange, Supervisor

log = logging.getLogger("worker.handler")

# uvicorn, under SGLang, closes a connection after 5 idle seconds (SGLANG_TIMEOUT_KEEP_ALIVE). Ours must go first, or a
# request can meet a connection that is just being closed.
KEEPALIVE_SECONDS = 2.0
CONNECT_TIMEOUT_SECONDS = 10.0

Send = Callable[[UpstreamRequest], AbstractAsyncContextManager[httpx.Response]]


def create_handler(
    client: httpx.AsyncClient,
    supervisor: Supervisor,
    *,
    served_model_name: str,
    settings: Settings,
    mask: Mask,
    can_stream: bool = True,
) -> JobHandler:
    """The handler of every job: an async generator function over the one shared client.

    It yields the job's outputs in order: strings of whole SSE events while the engine streams, or one parsed JSON
    answer. A failed job's last output is `{"error": "<JSON>"}`, the form in which the SDK takes an error; where events
    have been sent already, an SSE error event goes before it. It raises nothing but cancellation, and closes the
    engine's stream on every way out.

    can_stream: where the platform takes no streams, a job that asks for one is answered unstreamed.
    """
    unstreamed_jobs, pacer = itertools.count(), streaming.Pacer(settings.stream_flush_seconds)
    url = lru_cache(maxsize=64)(client.base_url.join)  # httpx parses it anew for each request

    def send(request: UpstreamRequest) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"Content-Type": "application/json"} if request.body else {}
        return client.stream(request.method, url(request.path), content=request.body, headers=headers)

    async def handler(job: Job) -> AsyncGenerator[Output, None]:
        began, events_sent = time.monotonic(), False
        try:
            request = build_request(
                job.get("input"),
                served_model_name=served_model_name,
                limits=settings.limits,
                allowed_routes=settings.allowed_routes,
            )
            if request.stream and not can_stream:
                request = unstreamed(request)
                if not next(unstreamed_jobs):
                    log.warning("this platform takes no streams: jobs with `stream: true` are answered unstreamed")
            async with aclosing(_deliver(send, supervisor, request, pacer)) as outputs:
                async for output in outputs:
                    yield output
                    events_sent = events_sent or isinstance(output, str)
            how = "streamed" if request.stream else "answered"
            log.info("job %s: %s %s %s in %.2f s", job.get("id"), request.method, request.path, how, _since(began))
        except Exception as exception:
            error = _as_job_error(exception, settings.request_timeout_seconds)
            error.message = mask(error.message)
            log.warning("job %s: failed after %.2f s: %d %s", job.get("id"), _since(began), error.code, error.type)
            if isinstance(exception, ErrorEvent):
                yield mask(answers.error_event(error, head=exception.head, fields=exception.fields))
            elif events_sent:
                yield answers.error_event(error)
            yield {"error": error.as_json()}

    return handler


async def _deliver(
    send: Send, supervisor: Supervisor, request: UpstreamRequest, pacer: streaming.Pacer
) -> AsyncGenerator[Output, None]:
    """The outputs of a request. When its engine dies before the first of them, it is sent to the next, once."""
    for _ in range(2):
        async with supervisor.exchange() as exchange:
            sent = False
            try:
                async with aclosing(_forward(send, request, exchange, pacer)) as outputs:
                    async for output in outputs:
                        sent = True
                        yield output
                return
            except (httpx.TransportError, JobError, ErrorEvent) as error:
                if not await _died_of_its_engine(error, exchange):
                    raise
                reason = await exchange.reason_of_loss()
                if sent:
                    raise AnswerCutOffError(f"the answer was cut off: {reason}") from error
    raise EngineUnavailableError(f"the engine died under this job, and again when it was sent once more: {reason}")


async def _died_of_its_engine(error: Exception, exchange: Exchange) -> bool:
    """Whether a request failed because its engine died; a silent engine that turns out to be wedged is killed here."""
    match error:
        case httpx.ReadTimeout():
            return await exchange.engine_is_wedged()
        case httpx.TransportError() | AnswerCutOffError():
            return await exchange.engine_gets_lost()
        case UpstreamError(code=code) if code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        case _:
            return exchange.engine_is_lost


async def _forward(
    send: Send, request: UpstreamRequest, exchange: Exchange, pacer: streaming.Pacer
) -> AsyncGenerator[Output, None]:
    async with send(request) as response:
        exchange.progressed()
        if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise from_response(response.status_code, await response.aread())
        content_type = response.headers.get("Content-Type", "")
        if content_type.startswith("text/event-stream"):
            async with aclosing(answers.events(_Observed(response.aiter_raw(), exchange), pacer)) as outputs:
                async for output in outputs:
                    yield output
        else:
            yield answers.parsed(await response.aread(), is_json=content_type.startswith("application/json"))


class _Observed:
    """Chunks as they come, each noted as a sign of life. No generator, which would cost more a chunk."""

    def __init__(self, chunks: AsyncIterator[bytes], exchange: Exchange) -> None:
        self._chunks = chunks
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        self._exchange.progressed()  # whoever asks for the next chunk has got the last
        return self._chunks.__anext__()


def _as_job_error(exception: Exception, request_timeout_seconds: float) -> JobError:
    match exception:
        case JobError():
            return exception
        case ErrorEvent():
            return exception.error
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return EngineUnavailableError("the engine cannot be reached")
        case httpx.ReadTimeout():
            return EngineTimeoutError(f"the engine sent nothing for {request_timeout_seconds:g} s")
        case httpx.TransportError():
            return AnswerCutOffError("the connection to the engine broke before the answer was complete")
        case streaming.EventTooLargeError():
            return AnswerCutOffError(str(exception))
        case _:
            log.error("unexpected %s in the handler:\n%s", *type_and_place(exception))
            return JobError()


def _since(began: float) -> float:
    return time.monotonic() - began


def create_client(config: EngineConfig, settings: Settings) -> httpx.AsyncClient:
    """The one client of the worker."""
    headers = {"Accept-Encoding": "identity"}  # streams are framed as they come
    if config.api_key:
        headers["Authorization"] = f"Bearer {config.api_key}"
    url = httpx.URL(config.base_url)
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(settings.request_timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS, pool=None),
        transport=EngineTransport(url.host, url.port or 80, keepalive_seconds=KEEPALIVE_SECONDS),
        trust_env=False,
    )


class FrontDesk:
    """The handler with its engine, as a `serverless.ManagedHandler`."""

    def configure(
        self, environ: Mapping[str, str], mask: Mask, *, can_stream: bool
    ) -> tuple[Settings, serverless.Lifespan]:
        """Plan the engine; say which variables have no effect. Raises ConfigurationError."""
        for warning in warnings_for(environ):
            log.warning("%s", warning)
        config, settings = configure(environ, read_image_file())
        return settings, partial(serve, config, settings, mask, can_stream=can_stream)


@asynccontextmanager
async def serve(
    config: EngineConfig, settings: Settings, mask: Mask, *, can_stream: bool
) -> AsyncGenerator[serverless.Service, None]:
    """Start the engine and wait until it is warm; give the handler over it; stop the engine at the end."""
    async with create_client(config, settings) as client, Supervisor(Engine(config, mask), settings) as supervisor:
        yield serverless.Service(
            handler=create_handler(
                client,
                supervisor,
                served_model_name=config.served_model_name,
                settings=settings,
                mask=mask,
                can_stream=can_stream,
            ),
            wait_until_ready=supervisor.wait_until_ready,
            wait_for_failure=supervisor.wait_for_failure,
            error_event=answers.error_event,
        )


def main() -> None:
    """The program: serve GLM-4.7-Flash in the mode that the command line and the environment ask for."""
    load_dotenv(Path.cwd() / ".env")  # what the environment has already wins
    serverless.start({"handler": FrontDesk(), "return_aggregate_stream": True})


if __name__ == "__main__":
    main()
