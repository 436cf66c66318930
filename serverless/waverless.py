"""`GET /health` of a worker on Waverless, which answers as long as the worker lives."""

from __future__ import annotations

from fastapi import FastAPI

from runpod_sdk import WORKER_ID, jobs_in_progress


def health_app() -> FastAPI:
    """The app with that one route."""
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "worker_id": WORKER_ID, "jobs_in_progress": jobs_in_progress()}

    return app
