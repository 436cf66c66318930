"""The app: both sides of RunPod's queue API, OpenAI's API, and a page to try it."""

from __future__ import annotations

from hmac import compare_digest
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse

from local_runpod.client_side import client_side
from local_runpod.faults import Faults
from local_runpod.jobs import JobQueue
from local_runpod.openai_side import openai_side
from local_runpod.webhooks import Webhooks
from local_runpod.worker_side import worker_side

LONG_POLL_SECONDS = 10.0
PAGE = Path(__file__).with_name("page.html")

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
) -> FastAPI:
    """The app over a queue.

    faults: make the worker's side misbehave. long_poll_seconds: the most that an empty poll takes. worker_key,
    client_key: what each side must show, None to let in everyone.
    """
    queue, faults, webhooks = queue or JobQueue(), faults or Faults(), webhooks or Webhooks()
    app = FastAPI(title="Local RunPod", description=DESCRIPTION)

    async def admit(request: Request) -> None:
        """Clients show their key as `Authorization: Bearer …`, as RunPod's do, or bare."""
        shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if client_key is not None and not compare_digest(shown, client_key.encode()):
            raise HTTPException(401, "a key is needed: Authorization: Bearer <LOCAL_API_KEY>")

    workers = worker_side(queue, faults, long_poll_seconds=long_poll_seconds, worker_key=worker_key)
    app.include_router(workers, prefix="/v2/{endpoint_id}")
    for side in (client_side(queue, webhooks), openai_side(queue)):
        app.include_router(side, prefix="/v2/{endpoint_id}", dependencies=[Depends(admit)])
        app.include_router(side, dependencies=[Depends(admit)], include_in_schema=False)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    return app
