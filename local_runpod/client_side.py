"""What clients call, as on api.runpod.ai: https://docs.runpod.io/serverless/endpoints/send-requests."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request

from local_runpod import bodies
from local_runpod.jobs import Job, JobQueue, JobState
from local_runpod.webhooks import Webhooks

# How long RunPod holds a /runsync before it answers with the state so far; `?wait=` changes it, in milliseconds.
RUNSYNC_SECONDS = 90.0
LEAST_WAIT_MS, MOST_WAIT_MS = 1000, 300_000
STREAM_SECONDS = 10.0

# Bodies are read by hand, since an input may be what no schema lets through (worker tests send such).
_SUBMISSION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {
                        "input": {"description": "The job's input: one of the three kinds of request."},
                        "webhook": {"type": "string", "description": "Where the finished job is posted to."},
                    },
                },
                "example": {"input": {"messages": [{"role": "user", "content": "Hello"}]}},
            }
        },
    }
}


def client_side(queue: JobQueue, webhooks: Webhooks) -> APIRouter:
    """The routes over a queue."""
    router = APIRouter(tags=["jobs"])

    @router.post("/run", summary="Submit a job; answers at once", openapi_extra=_SUBMISSION)
    async def run(request: Request) -> dict[str, Any]:
        return (await _submit(queue, webhooks, request, bodies.RUN_LIMIT_BYTES)).report()

    @router.post("/runsync", summary="Submit a job and wait for its end", openapi_extra=_SUBMISSION)
    async def runsync(
        request: Request, wait: int = Query(int(RUNSYNC_SECONDS * 1000), ge=LEAST_WAIT_MS, le=MOST_WAIT_MS)
    ) -> dict[str, Any]:
        job = await _submit(queue, webhooks, request, bodies.RUNSYNC_LIMIT_BYTES)
        with suppress(TimeoutError):  # the client gets the state so far, and asks /status for the rest
            await job.finished(wait / 1000)
        return job.report()

    # The SDK's own local API takes a POST where api.runpod.ai takes a GET; here both do.
    @router.post("/status/{job_id}", include_in_schema=False)
    @router.get("/status/{job_id}", summary="A job's state, and its end")
    async def status(job_id: str) -> dict[str, Any]:
        return bodies.find(queue, job_id).report()

    @router.post("/stream/{job_id}", include_in_schema=False)
    @router.get("/stream/{job_id}", summary="The outputs since the last call; waits for the next")
    async def stream(job_id: str) -> dict[str, Any]:
        job = bodies.find(queue, job_id)
        with suppress(TimeoutError):
            await job.streamed(job.fetched + 1, STREAM_SECONDS)
        fresh, job.fetched = job.stream[job.fetched :], len(job.stream)
        return {"status": job.state, "stream": [{"output": output} for output in fresh]}

    @router.post("/cancel/{job_id}", summary="Cancel a job, waiting or running")
    async def cancel(job_id: str) -> dict[str, Any]:
        job = bodies.find(queue, job_id)
        queue.cancel(job)
        return {"id": job.id, "status": job.state}

    @router.post("/purge-queue", summary="Cancel all jobs that still wait")
    async def purge_queue() -> dict[str, Any]:
        return {"removed": queue.purge(), "status": "completed"}

    @router.get("/health", summary="How many jobs and workers there are")
    async def health() -> dict[str, Any]:
        counts = queue.counts()
        return {
            "jobs": {
                "inQueue": counts[JobState.IN_QUEUE],
                "inProgress": counts[JobState.IN_PROGRESS],
                "completed": counts[JobState.COMPLETED],
                "failed": counts[JobState.FAILED],
                "retried": 0,
            },
            "workers": queue.workers(),
        }

    return router


async def _submit(queue: JobQueue, webhooks: Webhooks, request: Request, limit_bytes: int) -> Job:
    body = bodies.parse_object(await bodies.read(request, limit_bytes))
    if "input" not in body:
        raise HTTPException(400, 'the body must be an object with an "input"')
    webhook = body.get("webhook")
    if webhook is not None and not (isinstance(webhook, str) and webhook.startswith(("http://", "https://"))):
        raise HTTPException(400, '"webhook" must be an http or https URL')
    job = queue.submit(body["input"])
    if webhook is not None:
        webhooks.announce(job, webhook)
    return job
