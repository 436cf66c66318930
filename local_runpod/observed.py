"""What a worker tells of itself beside the queue: its metrics, its engine's state, the figures of the last minute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response


@dataclass(frozen=True)
class Observed:
    """Where these come from.

    engine: how the engine is, a part of `GET /health`. figures: what the page shows. metrics: the page that Prometheus
    reads, in the form that `metrics_type` names.
    """

    engine: Callable[[], Mapping[str, Any]]
    figures: Callable[[], Awaitable[Mapping[str, Any]]]
    metrics: Callable[[], Awaitable[str]]
    metrics_type: str = "text/plain; version=0.0.4; charset=utf-8"


def observed_side(observed: Observed) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await observed.metrics(), media_type=observed.metrics_type)

    @router.get("/figures.json", include_in_schema=False)
    async def figures() -> JSONResponse:
        return JSONResponse({"engine": observed.engine(), "last_minute": await observed.figures()})

    return router
