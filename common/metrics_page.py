"""`GET /metrics`: the meters as Prometheus reads them, this process's memory and processor time, and further pages.

prometheus_client is imported for the first page, and in a thread: it takes 0.1 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from common.errors import type_and_place
from common.meters import METERS, Counter, Histogram, Meter

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

log = logging.getLogger("worker.metrics")

METRICS_PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MORE_SECONDS = 5.0  # for a further page; Prometheus itself waits 10 s by default

_more: list[Callable[[], Awaitable[str]]] = []


@contextmanager
def with_page(more: Callable[[], Awaitable[str]]) -> Generator[None, None, None]:
    """Within this context, what this returns follows the worker's own metrics. Its names must be others."""
    _more.append(more)
    try:
        yield
    finally:
        _more.remove(more)


async def page() -> str:
    """The page. A further page that fails or takes too long is left out, and the log says so."""
    registry = await asyncio.to_thread(_registry)
    from prometheus_client import generate_latest

    pages = [generate_latest(registry).decode()]  # on this thread, where everything is counted
    for more in _more:
        try:
            async with asyncio.timeout(MORE_SECONDS):
                pages.append(await more())
        except Exception as error:
            log.warning("a part of the metrics is missing: %s", type_and_place(error)[0])
    return "".join(pages)


async def serve_page(
    scope: MutableMapping[str, Any],
    _: Callable[[], Awaitable[Any]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """The page as an ASGI application: GET and HEAD of `/metrics`, and nothing else."""
    if scope["type"] != "http":
        raise NotImplementedError  # uvicorn then does without
    found, allowed = scope["path"] == METRICS_PATH, scope["method"] in ("GET", "HEAD")
    status = 200 if found and allowed else 405 if found else 404
    body = (await page()).encode() if status == 200 else b"GET /metrics is all there is here\n"
    kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


@cache
def _registry() -> CollectorRegistry:
    from prometheus_client import CollectorRegistry, ProcessCollector

    class Meters:
        def collect(self) -> Iterator[Metric]:
            return map(_family_of, METERS)

    registry = CollectorRegistry()
    registry.register(Meters())
    ProcessCollector(registry=registry)
    return registry


def _family_of(meter: Meter) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if isinstance(meter, Histogram):
        family = HistogramMetricFamily(meter.name, meter.help, labels=meter.labels)
        bounds = [*map(repr, meter.bounds), "+Inf"]
        for labels, distribution in meter.values.items():
            buckets = list(zip(bounds, accumulate(distribution.counts), strict=True))
            family.add_metric(labels, buckets, distribution.sum)
        return family
    kind = CounterMetricFamily if isinstance(meter, Counter) else GaugeMetricFamily
    numbers = kind(meter.name, meter.help, labels=meter.labels)
    for labels, value in meter.values.items():
        numbers.add_metric(labels, value)
    return numbers
