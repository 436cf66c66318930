"""Health checks, open to everybody: whether this API answers, and whether there is somebody to answer its jobs.

`/health` is not among them: it is RunPod's, and counts jobs and workers.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from fastapi import APIRouter, HTTPException, Response

from local_runpod.jobs import JobQueue


class Health(Enum):
    """What becomes of a job that comes now; the value is the status of `/ping`, as RunPod's load balancer reads it."""

    READY = 200
    NOT_YET = 204
    """It waits for the service to start, or to start again."""
    NO_MORE = 503


def health_of_workers(queue: JobQueue) -> Health:
    """Whether a worker has an open poll, or a job in progress."""
    workers = queue.workers()
    return Health.READY if workers["ready"] or workers["running"] else Health.NOT_YET


def health_side(health: Callable[[], Health]) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Health"])

    @router.get("/ping", summary="200: jobs are answered; 204: they wait; 503: they are refused")
    async def ping() -> Response:
        return Response(status_code=health().value)

    @router.get("/health/live", summary="200 while this API answers")
    async def live() -> Response:
        return Response(status_code=200)

    @router.get("/health/ready", summary="200 while jobs are answered at once, else 503")
    async def ready() -> Response:
        if (now := health()) is not Health.READY:
            reason = "the worker is stopping" if now is Health.NO_MORE else "the worker is not ready yet"
            raise HTTPException(503, reason)
        return Response(status_code=200)

    return router
