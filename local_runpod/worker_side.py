"""What RunPod's SDK calls. The paths are those in its `RUNPOD_WEBHOOK_*` variables.

The SDK posts JSON with a form's content type, so bodies are parsed here whatever their content type.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from local_runpod import bodies
from local_runpod.faults import Faults
from local_runpod.jobs import Job, JobQueue, RawJson

# How long a streamed output waits for a slow reader before its worker is asked to send it again; a worker allows a post
# 60 s.
SLOW_READER_SECONDS = 20.0


def worker_side(
    queue: JobQueue, faults: Faults, *, long_poll_seconds: float, worker_key: str | None = None
) -> APIRouter:
    """The routes over a queue. worker_key: what workers must send as `?key=`; None to let everyone in."""

    router = APIRouter(dependencies=[Depends(_gate(faults, worker_key))], include_in_schema=False)

    async def take(request: Request, worker_id: str, most: int) -> list[Job]:
        with queue.polled_by(worker_id):
            # A worker that has hung up in the meantime must not be given a job: nobody would ever answer it.
            if await queue.wait_for_job(long_poll_seconds) and not await request.is_disconnected():
                return queue.take(worker_id, most)
        return []

    @router.get("/job-take/{worker_id}", response_model=None)
    async def job_take(request: Request, worker_id: str) -> Response:
        jobs = await take(request, worker_id, 1)
        return _json(_for_worker(jobs[0])) if jobs else Response(status_code=204)

    @router.get("/job-take-batch/{worker_id}", response_model=None)
    async def job_take_batch(request: Request, worker_id: str, batch_size: int = 1) -> Response:
        if faults.nonsense:
            return _json(faults.nonsense.pop(0))
        jobs = await take(request, worker_id, batch_size)
        return _json(f"[{', '.join(map(_for_worker, jobs))}]") if jobs else Response(status_code=204)

    @router.post("/job-stream/{worker_id}/{job_id}")
    async def job_stream(request: Request, job_id: str) -> dict[str, Any]:
        await _add_output(queue, bodies.find(queue, job_id), request)
        return {}

    @router.post("/job-done/{worker_id}/{job_id}")
    async def job_done(request: Request, job_id: str) -> dict[str, Any]:
        await _finish(queue, bodies.find(queue, job_id), request)
        return {}

    @router.get("/job-stop/{worker_id}")
    async def job_stop(worker_id: str) -> dict[str, list[str]]:
        return {"jobsToStop": await queue.stop_signals(worker_id, long_poll_seconds)}

    @router.get("/ping/{worker_id}")
    async def ping(request: Request, worker_id: str) -> dict[str, Any]:
        parameters = {name: value for name, value in request.query_params.items() if name != "key"}
        queue.ping(worker_id, parameters)
        return {}

    return router


def _gate(faults: Faults, worker_key: str | None) -> Callable[[Request], Awaitable[None]]:
    """What every call passes through: the check of the workers' key, then the faults on demand."""

    async def admit(request: Request) -> None:
        shown = request.query_params.get("key", "").encode("utf-8", "replace")
        if worker_key is not None and not compare_digest(shown, worker_key.encode()):
            raise HTTPException(401, "this address is for workers with a key")
        route = request.url.path.split("/")[3]
        if status := await faults.apply(route):
            raise _refusal(request, status)

    return admit


def _refusal(request: Request, status: int) -> HTTPException:
    elsewhere = {"Location": f"{request.url.path}/elsewhere"} if 300 <= status < 400 else None
    return HTTPException(status, "this route is told to refuse", elsewhere)


async def _add_output(queue: JobQueue, job: Job, request: Request) -> None:
    if not await queue.wait_for_reader(job, SLOW_READER_SECONDS):
        raise HTTPException(429, "the reader of this stream is slow; send this output again")
    body = await bodies.read(request, bodies.STREAMED_OUTPUT_LIMIT_BYTES, queue)
    result = bodies.parse_object(body, strictly=True)
    if not queue.add_output(job, result.get("output"), size_bytes=len(body)):
        raise HTTPException(413, f"nobody is reading this stream; up to {queue.limits.stream_bytes} bytes are kept")


async def _finish(queue: JobQueue, job: Job, request: Request) -> None:
    body = await bodies.read(request, bodies.RUNSYNC_LIMIT_BYTES, queue)
    result = bodies.parse_object(body, strictly=True)
    if result.get("status") == "IN_PROGRESS":  # the job goes on (runpod 1.12.0, rp_progress.py)
        queue.report_progress(job, result.get("output"), size_bytes=len(body))
        return
    output, error = result.get("output"), result.get("error")
    # RunPod takes an error as text; anything else reaches the client as a Python repr.
    queue.finish(job, output=output, error=error if error is None else str(error), size_bytes=len(body))


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _for_worker(job: Job) -> str:
    """A job as JSON text, in ASCII."""
    job_input = job.input if isinstance(job.input, RawJson) else json.dumps(job.input)
    return f'{{"id": {json.dumps(job.id)}, "input": {job_input}}}'
