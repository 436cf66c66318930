"""The realtime route of RunPod's SDK (runpod 1.12.0, rp_fastapi.py): a job with its caller's id, answered at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request

from local_runpod import bodies
from local_runpod.jobs import Job, JobQueue, JobState
from local_runpod.openai_side import CLIENT_CLOSED_REQUEST, unless_caller_leaves

MOST_ID_CHARACTERS = 512


def realtime_side(queue: JobQueue) -> APIRouter:
    """The route over a queue."""
    router = APIRouter(include_in_schema=False)

    @router.post("/realtime")
    async def realtime(request: Request) -> dict[str, Any]:
        asked = bodies.parse_object(await bodies.read_json(request, bodies.RUNSYNC_LIMIT_BYTES, queue))
        job_id = asked.get("id")
        if not isinstance(job_id, str) or not 0 < len(job_id) <= MOST_ID_CHARACTERS or "input" not in asked:
            raise HTTPException(400, f'the body needs an "id" of up to {MOST_ID_CHARACTERS} characters and an "input"')
        if (before := queue.jobs.get(job_id)) is not None:
            if not before.state.is_final:
                raise HTTPException(409, "a job of this id is running")
            queue.forget(before)
        text = bodies.as_text(asked["input"])
        job = queue.submit(text, size_bytes=len(text), job_id=job_id)
        try:
            if not await unless_caller_leaves(request, job.finished()):
                raise HTTPException(CLIENT_CLOSED_REQUEST, "the caller hung up")
            return _result_of(queue, job)
        finally:
            queue.cancel(job)
            queue.forget(job)

    return router


def _result_of(queue: JobQueue, job: Job) -> dict[str, Any]:
    """`{"output": …}` or `{"error": text}`. Nobody else reads the outputs of a stream, so they are the output too."""
    if job.state is not JobState.COMPLETED:
        return {"error": job.error or "the job was cancelled"}
    streamed = queue.fetch(job)
    return {"output": job.output or streamed or job.output}
