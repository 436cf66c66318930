"""The app: both sides of RunPod's queue API, OpenAI's API, and a page to try it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from local_runpod.access import Access, Gate
from local_runpod.client_side import client_side
from local_runpod.faults import Faults
from local_runpod.health_side import Health, health_of_workers, health_side
from local_runpod.jobs import JobQueue, QueueClosedError, QueueFullError
from local_runpod.observed import Observed, observed_side
from local_runpod.openai_side import openai_side
from local_runpod.pages import add_pages
from local_runpod.realtime_side import realtime_side
from local_runpod.refusals import refusal
from local_runpod.webhooks import Webhooks
from local_runpod.worker_side import worker_side

LONG_POLL_SECONDS = 10.0

DESCRIPTION = """\
RunPod's serverless API for one worker on this machine. The paths are those of `https://api.runpod.ai`, with any
endpoint id; each works without `/v2/{endpoint_id}` too. The page to try it is at [/](/).
"""


def create_app(
    queue: JobQueue | None = None,
    faults: Faults | None = None,
    *,
    long_poll_seconds: float = LONG_POLL_SECONDS,
    worker_key: str | None = None,
    client_key: str | None = None,
    webhooks: Webhooks | None = None,
    access: Access | None = None,
    introduction: Mapping[str, Any] | None = None,
    health: Callable[[], Health] | None = None,
    observed: Observed | None = None,
) -> FastAPI:
    """The app over a queue.

    faults: make the worker's side misbehave. long_poll_seconds: how long an empty poll may take. worker_key,
    client_key: what each side must send; None to let everyone in. access: who may call; it has its own key and replaces
    `client_key`. Without it, anyone with the key may call. introduction: what the page says about the model; see
    `add_pages`. health: whether jobs are answered; by default, whether a worker is asking for them.
    observed: what the worker behind the queue tells of itself.
    """
    queue, faults, webhooks = queue or JobQueue(), faults or Faults(), webhooks or Webhooks()
    access = access or Access(key=client_key)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        await webhooks.close()

    app = FastAPI(title="Local RunPod", description=DESCRIPTION, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Gate, access=access)
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["*"], allow_headers=["*"])
    _tell_errors_in_their_form(app)

    async def admit(request: Request) -> None:
        """Clients send their key as `Authorization: Bearer …`, as RunPod's do, or without `Bearer`."""
        shown = request.headers.get("authorization") or request.headers.get("x-api-key", "")  # Anthropic's clients
        if not access.shows_key(shown):
            raise HTTPException(401, "a key is needed: Authorization: Bearer <LOCAL_API_KEY>")

    workers = worker_side(queue, faults, long_poll_seconds=long_poll_seconds, worker_key=worker_key)
    app.include_router(workers, prefix="/v2/{endpoint_id}")
    of_worker = [observed_side(observed)] if observed is not None else []
    for side in (client_side(queue, webhooks, observed), openai_side(queue), *of_worker):
        app.include_router(side, prefix="/v2/{endpoint_id}", dependencies=[Depends(admit)])
        app.include_router(side, dependencies=[Depends(admit)], include_in_schema=False)

    app.include_router(
        openai_side(queue, under="/v1", leads_to="/v1"), dependencies=[Depends(admit)], include_in_schema=False
    )
    app.include_router(realtime_side(queue), prefix="/{endpoint_id}", dependencies=[Depends(admit)])
    app.include_router(health_side(health or partial(health_of_workers, queue)))
    add_pages(app, admit, introduction)
    return app


def _tell_errors_in_their_form(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return refusal(request.url.path, error.status_code, error.detail, error.headers)

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> Response:
        return refusal(request.url.path, 429, str(error))

    @app.exception_handler(QueueClosedError)
    async def closed(request: Request, error: QueueClosedError) -> Response:
        return refusal(request.url.path, 503, str(error))
