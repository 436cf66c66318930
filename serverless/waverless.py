"""What is special about Waverless: the form of its results, its missing stop channel, and its `GET /health`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from serverless.runpod import WORKER_ID, RunPodPlatform, jobs_in_progress


class WaverlessPlatform(RunPodPlatform):
    """RunPod's protocol without a stop channel. It has no channel for streamed outputs: any post ends the job."""

    async def stopped_jobs(self) -> list[str] | None:
        """None: there is no such channel."""
        return None


def health_app() -> FastAPI:
    """An app that answers `GET /health` as long as the worker lives."""
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "worker_id": WORKER_ID, "jobs_in_progress": jobs_in_progress()}

    return app


def one_object(outputs: list[Any]) -> dict[str, Any]:
    """A result for a platform that takes one JSON object and nothing else; other values are put under `output`."""
    result = outputs[0] if len(outputs) == 1 else outputs
    return result if isinstance(result, dict) else {"output": result}
