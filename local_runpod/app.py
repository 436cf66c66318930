"""The HTTP face of the queue: the worker's side and the client's side of RunPod's API."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from starlette.requests import ClientDisconnect

from local_runpod.faults import Faults
from local_runpod.jobs import Job, JobQueue, JobState, RawJson

LONG_POLL_SECONDS = 10.0
RUNSYNC_SECONDS = 90.0  # how long RunPod holds a /runsync before it answers with the state so far
STREAM_SECONDS = 10.0

# RunPod's limits, https://docs.runpod.io/serverless/endpoints/send-requests
RUN_LIMIT_BYTES = 10 * 1024 * 1024
RUNSYNC_LIMIT_BYTES = 20 * 1024 * 1024
STREAMED_OUTPUT_LIMIT_BYTES = 1024 * 1024


def create_app(
    queue: JobQueue | None = None, faults: Faults | None = None, *, long_poll_seconds: float = LONG_POLL_SECONDS
) -> FastAPI:
    """The app over a queue. `faults` makes the worker's side misbehave; `long_poll_seconds` bounds its empty polls."""
    queue, faults = queue or JobQueue(), faults or Faults()
    app = FastAPI(title="Local RunPod", description="RunPod's serverless API for one worker on this machine.")
    app.include_router(_worker_side(queue, faults, long_poll_seconds), prefix="/v2/{endpoint_id}")
    app.include_router(_client_side(queue), prefix="/v2/{endpoint_id}")
    return app


def _worker_side(queue: JobQueue, faults: Faults, long_poll_seconds: float) -> APIRouter:
    """What RunPod's SDK calls. The paths are those of its `RUNPOD_WEBHOOK_*` variables."""

    async def misbehave(request: Request) -> None:
        route = request.url.path.split("/")[3]
        if status := await faults.apply(route):
            raise HTTPException(status, f"{route} is told to refuse")

    router = APIRouter(dependencies=[Depends(misbehave)], tags=["worker"])

    async def take(request: Request, worker_id: str, most: int) -> list[Job]:
        # A worker that has hung up meanwhile must not be given a job: nobody would ever answer it.
        if await queue.wait_for_job(long_poll_seconds) and not await request.is_disconnected():
            return queue.take(worker_id, most)
        return []

    @router.get("/job-take/{worker_id}", response_model=None)
    async def job_take(request: Request, worker_id: str) -> Response:
        jobs = await take(request, worker_id, 1)
        return _json(_for_worker(jobs[0])) if jobs else Response(status_code=204)

    @router.get("/job-take-batch/{worker_id}", response_model=None)
    async def job_take_batch(request: Request, worker_id: str, batch_size: int = 1) -> Response:
        jobs = await take(request, worker_id, batch_size)
        return _json(f"[{', '.join(map(_for_worker, jobs))}]") if jobs else Response(status_code=204)

    @router.post("/job-stream/{worker_id}/{job_id}")
    async def job_stream(request: Request, job_id: str) -> dict[str, Any]:
        job, result = _job(queue, job_id), await _result(request, STREAMED_OUTPUT_LIMIT_BYTES)
        queue.add_output(job, result.get("output"))
        return {}

    @router.post("/job-done/{worker_id}/{job_id}")
    async def job_done(request: Request, job_id: str) -> dict[str, Any]:
        job, result = _job(queue, job_id), await _result(request, RUNSYNC_LIMIT_BYTES)
        error = result.get("error")
        # RunPod takes an error as text; anything else reaches the client as a Python repr.
        queue.finish(job, output=result.get("output"), error=error if error is None else str(error))
        return {}

    @router.get("/job-stop/{worker_id}")
    async def job_stop(worker_id: str) -> dict[str, list[str]]:
        return {"jobsToStop": await queue.stop_signals(worker_id, long_poll_seconds)}

    @router.get("/ping/{worker_id}")
    async def ping(request: Request, worker_id: str) -> dict[str, Any]:
        queue.ping(worker_id, dict(request.query_params))
        return {}

    return router


def _client_side(queue: JobQueue) -> APIRouter:
    """What clients call, as on api.runpod.ai."""
    router = APIRouter(tags=["client"])

    @router.post("/run")
    async def run(request: Request) -> dict[str, Any]:
        return (await _submitted(queue, request, RUN_LIMIT_BYTES)).report()

    @router.post("/runsync")
    async def runsync(request: Request) -> dict[str, Any]:
        job = await _submitted(queue, request, RUNSYNC_LIMIT_BYTES)
        with suppress(TimeoutError):  # the client gets the state so far, and asks /status for the rest
            await job.finished(RUNSYNC_SECONDS)
        return job.report()

    @router.get("/status/{job_id}")
    async def status(job_id: str) -> dict[str, Any]:
        return _job(queue, job_id).report()

    @router.api_route("/stream/{job_id}", methods=["GET", "POST"])
    async def stream(job_id: str) -> dict[str, Any]:
        job = _job(queue, job_id)
        with suppress(TimeoutError):
            await job.streamed(job.fetched + 1, STREAM_SECONDS)
        fresh, job.fetched = job.stream[job.fetched :], len(job.stream)
        return {"status": job.state, "stream": [{"output": output} for output in fresh]}

    @router.post("/cancel/{job_id}")
    async def cancel(job_id: str) -> dict[str, Any]:
        job = _job(queue, job_id)
        queue.cancel(job)
        return {"id": job.id, "status": job.state}

    @router.get("/health")
    async def health() -> dict[str, Any]:
        counts = queue.counts()
        return {
            "jobs": {
                "inQueue": counts[JobState.IN_QUEUE],
                "inProgress": counts[JobState.IN_PROGRESS],
                "completed": counts[JobState.COMPLETED],
                "failed": counts[JobState.FAILED],
            },
            "workers": {"running": len(queue.pings)},
        }

    return router


async def _submitted(queue: JobQueue, request: Request, limit_bytes: int) -> Job:
    if int(request.headers.get("content-length", 0)) > limit_bytes:
        raise HTTPException(413, f"the request is larger than {limit_bytes} bytes")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not valid JSON, or nested too deeply") from None
    if not isinstance(body, dict) or "input" not in body:
        raise HTTPException(400, "the request must be an object with an 'input'")
    return queue.submit(body["input"])


def _job(queue: JobQueue, job_id: str) -> Job:
    job = queue.jobs.get(job_id)
    if job is None:
        raise HTTPException(404, "job not found")
    return job


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


def _for_worker(job: Job) -> str:
    """A job as JSON text, in ASCII: a client's input may hold half a surrogate pair, which UTF-8 cannot."""
    job_input = job.input if isinstance(job.input, RawJson) else json.dumps(job.input)
    return f'{{"id": {json.dumps(job.id)}, "input": {job_input}}}'


async def _result(request: Request, limit_bytes: int) -> dict[str, Any]:
    """A worker's result. The SDK posts JSON under a form's content type, so that it is parsed here."""
    try:
        body = await request.body()
    except ClientDisconnect as error:  # a cancelled job's worker hangs up in the middle of its post
        raise HTTPException(400, "the worker hung up") from error
    if len(body) > limit_bytes:
        raise HTTPException(413, f"the output is larger than {limit_bytes} bytes")
    try:
        result = json.loads(body, parse_constant=_refuse_constant)
    except ValueError as error:
        raise HTTPException(400, "the output is not valid JSON") from error
    if not isinstance(result, dict):
        raise HTTPException(400, "the output must be an object")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
