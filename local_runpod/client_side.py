"""What clients call, as on api.runpod.ai: https://docs.runpod.io/serverless/endpoints/send-requests."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Query, Request

from local_runpod import bodies
from local_runpod.jobs import RETENTION_SECONDS, RUNSYNC_RETENTION_SECONDS, Job, JobQueue, JobState, RawJson
from local_runpod.observed import Observed
from local_runpod.webhooks import UnwelcomeWebhookError, Webhooks

# How long RunPod holds a /runsync before it answers with the state so far; `?wait=` changes it, in milliseconds.
RUNSYNC_SECONDS = 90.0
LEAST_WAIT_MS, MOST_WAIT_MS = 1000, 300_000
STREAM_SECONDS = 10.0

# Bodies are parsed by hand, since an input may be something that no schema accepts (the worker tests send such inputs).
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


def client_side(queue: JobQueue, webhooks: Webhooks, observed: Observed | None = None) -> APIRouter:
    """The routes over a queue. observed: tells how the engine of its worker is, for `/health`."""
    router = APIRouter(tags=["jobs"])

    @router.post("/run", summary="Submit a job; answers at once", openapi_extra=_SUBMISSION)
    async def run(request: Request) -> dict[str, Any]:
        submission = await _read(queue, webhooks, request, bodies.RUN_LIMIT_BYTES)
        return submission.submit(queue, webhooks, RETENTION_SECONDS).report()

    @router.post("/runsync", summary="Submit a job and wait for its end", openapi_extra=_SUBMISSION)
    async def runsync(
        request: Request, wait: int = Query(int(RUNSYNC_SECONDS * 1000), ge=LEAST_WAIT_MS, le=MOST_WAIT_MS)
    ) -> dict[str, Any]:
        submission = await _read(queue, webhooks, request, bodies.RUNSYNC_LIMIT_BYTES)
        job = submission.submit(queue, webhooks, RUNSYNC_RETENTION_SECONDS)
        with suppress(TimeoutError):  # the client gets the state so far, and can ask /status later
            await job.finished(wait / 1000)
        return job.report()

    # The SDK's own local API takes a POST where api.runpod.ai takes a GET; here both work.
    @router.post("/status/{job_id}", include_in_schema=False)
    @router.get("/status/{job_id}", summary="A job's state, and its end")
    async def status(job_id: str) -> dict[str, Any]:
        return bodies.find(queue, job_id).report()

    @router.post("/stream/{job_id}", include_in_schema=False)
    @router.get("/stream/{job_id}", summary="The outputs and progress since the last call; waits for the next")
    async def stream(job_id: str) -> dict[str, Any]:
        job = bodies.find(queue, job_id)
        with suppress(TimeoutError):
            await job.heard_of(STREAM_SECONDS)
        return {"status": job.state, "stream": [{"output": output} for output in queue.fetch_with_progress(job)]}

    @router.post("/cancel/{job_id}", summary="Cancel a job, waiting or running")
    async def cancel(job_id: str) -> dict[str, Any]:
        job = bodies.find(queue, job_id)
        queue.cancel(job)
        return {"id": job.id, "status": job.state}

    @router.post("/purge-queue", summary="Cancel all jobs that are still waiting")
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
            **({"engine": observed.engine()} if observed is not None else {}),
        }

    return router


@dataclass(frozen=True)
class _Submission:
    """A job to submit, already checked: its input as JSON text, and where to post its result."""

    job_input: RawJson
    webhook: str | None

    def submit(self, queue: JobQueue, webhooks: Webhooks, retention_seconds: float) -> Job:
        """Queue it. Raises QueueFullError and QueueClosedError."""
        if self.webhook is not None:
            webhooks.check_room()
        job = queue.submit(self.job_input, size_bytes=len(self.job_input), retention_seconds=retention_seconds)
        if self.webhook is not None:
            webhooks.announce(queue, job, self.webhook)
        return job


async def _read(queue: JobQueue, webhooks: Webhooks, request: Request, limit_bytes: int) -> _Submission:
    body = bodies.parse_object(await bodies.read_json(request, limit_bytes, queue))
    if "input" not in body:
        raise HTTPException(400, 'the body must be an object with an "input"')
    webhook = body.get("webhook")
    if webhook is not None:
        try:
            await webhooks.check(webhook)
        except UnwelcomeWebhookError as error:
            raise HTTPException(400, str(error)) from None
    return _Submission(bodies.as_text(body["input"]), webhook)
