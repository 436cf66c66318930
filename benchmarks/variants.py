"""The worker with one of its choices reverted: `python -m benchmarks.variants NAME` in place of `handler.py`."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import httpx
import orjson
import uvloop
from httpx_aiohttp import AiohttpTransport

import handler
import serverless
from gateway import deliver, sse
from sglang_engine.capacity import FALLBACK_JOBS


def as_it_is() -> None:
    """`python handler.py`."""
    handler.main()


def httpx_transport() -> None:
    """httpx's own transport in place of the worker's."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=deliver.KEEPALIVE_SECONDS)
    with_transport(lambda: httpx.AsyncHTTPTransport(limits=limits, trust_env=False))


def aiohttp_transport() -> None:
    """httpx-aiohttp's transport in place of the worker's."""
    limits = httpx.Limits(max_connections=0, keepalive_expiry=deliver.KEEPALIVE_SECONDS)  # 0 is unlimited to aiohttp
    with_transport(lambda: AiohttpTransport(limits=limits, verify=False, trust_env=False))


def with_transport(create: Callable[[], httpx.AsyncBaseTransport]) -> None:
    """Run the worker with this transport."""
    ours = deliver.create_client

    def create_client(*arguments: Any, **more: Any) -> httpx.AsyncClient:
        client = ours(*arguments, **more)
        client._transport = create()
        return client

    vars(handler)["create_client"] = create_client
    handler.main()


def ceiling(milliseconds: int) -> Callable[[], None]:
    """A different ceiling on outputs a second; 0: none."""

    def run() -> None:
        os.environ["STREAM_FLUSH_MS"] = str(milliseconds)
        handler.main()

    return run


def sdk_posts() -> None:
    """Posts over the SDK's session in place of the worker's own connections."""
    from serverless import runpod  # only now that the variables are those of a worker

    class Channel:
        def __init__(self, platform: runpod.RunPodPlatform, url: str, job: serverless.Job, *, is_stream: bool) -> None:
            self._session = platform._session
            self._url = url.replace("$ID", job["id"]) + f"&isStream={str(is_stream).lower()}"
            self._headers = runpod.POST_HEADERS | {"X-Request-ID": job["id"]}

        async def post(self, body: bytes) -> int:
            async with self._session.post(self._url, data=body, headers=self._headers) as answer:
                await answer.read()
                return answer.status

    vars(runpod)["RunPodPlatform"]._channel = lambda *given, **more: Channel(*given, **more)
    handler.main()


def one_event_an_output() -> None:
    """No batches at all: one output per event."""

    async def single(chunks: Any, **more: Any) -> AsyncGenerator[bytes, None]:
        async for batch in ours(chunks, **more):
            for event in batch.split(b"\n\n")[:-1]:
                yield event + b"\n\n"

    ours, sse.batches = sse.batches, single
    handler.main()


def asyncio_loop() -> None:
    """asyncio's own event loop in place of uvloop."""
    uvloop.new_event_loop = asyncio.new_event_loop  # type: ignore[assignment]
    handler.main()


def collector_as_it_is() -> None:
    """Python's own settings of the garbage collector."""
    gc.freeze = lambda: None
    gc.set_threshold = lambda *_: None
    handler.main()


def plain_json() -> None:
    """json in place of orjson for posts."""

    def dumps(data: Any) -> bytes:
        return json.dumps(data).encode()

    orjson.dumps = dumps  # type: ignore[assignment]
    handler.main()


def sdk_loop() -> None:
    """The SDK's own job loop and posts."""
    import runpod

    stack = AsyncExitStack()
    starting = asyncio.Lock()
    service: list[Any] = []

    def run(_: Any, lifespan: serverless.Lifespan, settings: serverless.WorkerSettings, **more: Any) -> NoReturn:
        async def answer(job: dict[str, Any]) -> AsyncGenerator[Any, None]:
            async with starting:
                if not service:
                    service.append(await stack.enter_async_context(lifespan()))
            async for output in service[0].handler(job):
                yield output

        most: Callable[[int], int] = lambda _: settings.max_concurrency.most or FALLBACK_JOBS  # noqa: E731
        os.environ["RUNPOD_LOG_LEVEL"] = "INFO"
        runpod.serverless.start({"handler": answer, "return_aggregate_stream": True, "concurrency_modifier": most})
        sys.exit()

    vars(serverless)["run"] = run
    handler.main()


VARIANTS: dict[str, Callable[[], None]] = {
    "this worker": as_it_is,
    "httpx-aiohttp's transport": aiohttp_transport,
    "httpx's transport": httpx_transport,
    "STREAM_FLUSH_MS=200": ceiling(200),
    "STREAM_FLUSH_MS=100": ceiling(100),
    "STREAM_FLUSH_MS=50": ceiling(50),
    "no ceiling": ceiling(0),
    "posts over the SDK's session": sdk_posts,
    "no batches": one_event_an_output,
    "asyncio's loop": asyncio_loop,
    "gc as it is": collector_as_it_is,
    "json for orjson": plain_json,
    "the SDK's loop": sdk_loop,
}

# Those that concern how late an event is.
LAG_VARIANTS = (
    "this worker",
    "STREAM_FLUSH_MS=100",
    "no ceiling",
    "posts over the SDK's session",
    "httpx's transport",
    "asyncio's loop",
)

if __name__ == "__main__":
    name = sys.argv.pop(1)
    VARIANTS[name]()
