"""Waverless's side of the protocol, as far as it differs from RunPod's: what the real one refuses, this one refuses.

No long poll (204 at once), no stop channel (404), and one result a task: `{"output": object, "error": string}`, taken
by the output channel and by the result channel alike, whichever comes first.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from local_runpod import JobQueue, bodies


class Waverless:
    """A queue of tasks behind Waverless's paths, and what it has refused."""

    def __init__(self) -> None:
        self.queue = JobQueue()
        self.refused: list[Any] = []
        self.calls: list[str] = []
        self.keys: set[str] = set()
        self.base_url = ""

    def environment(self) -> dict[str, str]:
        """What a native pod gets."""
        base = f"{self.base_url}/v2/glm"
        return {
            "WAVERLESS_ENDPOINT_ID": "glm",
            "WAVERLESS_POD_ID": "pod-7",
            "WAVERLESS_API_KEY": "waverless-secret",
            "WAVERLESS_PING_INTERVAL": "1000",
            "WAVERLESS_WEBHOOK_GET_JOB": f"{base}/job-take/$WAVERLESS_POD_ID?gpu=x",
            "WAVERLESS_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$WAVERLESS_POD_ID/$ID?gpu=x",
            "WAVERLESS_WEBHOOK_POST_STREAM": f"{base}/job-stream/$WAVERLESS_POD_ID/$ID?gpu=x",
            "WAVERLESS_WEBHOOK_PING": f"{base}/ping/$WAVERLESS_POD_ID",
        }

    def app(self) -> FastAPI:
        """The HTTP face."""
        app = FastAPI(openapi_url=None)

        @app.middleware("http")
        async def note(request: Request, call_next: Any) -> Any:
            self.calls.append(request.url.path)
            self.keys.add(request.headers.get("authorization", ""))
            return await call_next(request)

        @app.get("/v2/glm/job-take/{worker_id}", response_model=None)
        async def take(worker_id: str) -> dict[str, Any] | Response:
            jobs = self.queue.take(worker_id, 1)
            return {"id": jobs[0].id, "input": jobs[0].input} if jobs else Response(status_code=204)

        @app.get("/v2/glm/job-take-batch/{worker_id}", response_model=None)
        async def take_batch(worker_id: str, batch_size: int) -> list[dict[str, Any]] | Response:
            jobs = self.queue.take(worker_id, batch_size)
            return [{"id": job.id, "input": job.input} for job in jobs] or Response(status_code=204)

        @app.get("/v2/glm/ping/{worker_id}")
        async def ping(request: Request, worker_id: str) -> dict[str, Any]:
            self.queue.ping(worker_id, dict(request.query_params))
            return {}

        @app.post("/v2/glm/{channel}/{worker_id}/{job_id}")
        async def result(request: Request, channel: str, job_id: str) -> dict[str, Any]:
            if channel not in ("job-done", "job-stream"):
                raise HTTPException(404)
            result = bodies.parse_object(await bodies.read(request, bodies.RUNSYNC_LIMIT_BYTES))
            output, error = result.get("output"), result.get("error", "")
            if not isinstance(output, dict | None) or not isinstance(error, str):
                self.refused.append(result)
                raise HTTPException(400, "output must be an object, error a string")
            self.queue.finish(bodies.find(self.queue, job_id), output=output, error=error or None)
            return {}

        return app
