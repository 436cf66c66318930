"""OpenAI's API over the queue, as api.runpod.ai has it under `/openai/`: a call becomes a job, its output the answer.

The job's input is `{"openai_route": "/v1/…", "openai_input": {…}}`. Outputs that are text are whole server-sent events
and are passed on as they come; an unstreamed answer is one output. A failed job's error is JSON in OpenAI's shape, with
the status to answer with in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from local_runpod import bodies
from local_runpod.jobs import Job, JobQueue, JobState

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody reads the answer

_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {"type": "object", "description": "The body of OpenAI's API, for the path that is called."},
                "example": {"model": "glm-4.7-flash", "messages": [{"role": "user", "content": "Hello"}]},
            }
        }
    }
}


def openai_side(queue: JobQueue) -> APIRouter:
    """The routes over a queue."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/openai/{path:path}", summary="A GET of OpenAI's API, such as /v1/models", response_model=None)
    async def get(request: Request, path: str) -> Response:
        return await _answer(queue, request, {"openai_route": f"/{path}"})

    @router.post(
        "/openai/{path:path}",
        summary="A POST of OpenAI's API, such as /v1/chat/completions",
        openapi_extra=_BODY,
        response_model=None,
    )
    async def post(request: Request, path: str) -> Response:
        body = bodies.parse_object(await bodies.read(request, bodies.RUNSYNC_LIMIT_BYTES))
        return await _answer(queue, request, {"openai_route": f"/{path}", "openai_input": body})

    return router


async def _answer(queue: JobQueue, request: Request, job_input: dict[str, Any]) -> Response:
    job = queue.submit(job_input)
    if not await _begins_before_caller_leaves(request, job):
        queue.cancel(job)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if job.stream and isinstance(job.stream[0], str) and job.stream[0].startswith(("data:", "event:", ":")):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(queue, job), media_type="text/event-stream", headers=headers)
    try:
        await job.finished()
    finally:
        _end(queue, job)
    if job.state is not JobState.COMPLETED:
        return _error(job)
    output = job.output[0] if isinstance(job.output, list) and len(job.output) == 1 else job.output
    return PlainTextResponse(output) if isinstance(output, str) else JSONResponse(output)


async def _begins_before_caller_leaves(request: Request, job: Job) -> bool:
    """Wait for the job's first output or its end; False where the caller hangs up first."""
    begins = asyncio.create_task(job.streamed(1))
    leaves = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({begins, leaves}, return_when=asyncio.FIRST_COMPLETED)
        return begins.done()
    finally:
        begins.cancel()
        leaves.cancel()
        await asyncio.gather(begins, leaves, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(queue: JobQueue, job: Job) -> AsyncGenerator[str, None]:
    sent = 0
    try:
        while True:
            for output in job.stream[sent:]:
                sent += 1
                yield output
            if job.state.is_final:
                return
            await job.streamed(sent + 1)
    finally:
        _end(queue, job)


def _end(queue: JobQueue, job: Job) -> None:
    """A caller of OpenAI's API never learns the job's id: it is cancelled where the caller left, else not kept."""
    if job.state.is_final:
        queue.forget(job)
    else:
        queue.cancel(job)


def _error(job: Job) -> JSONResponse:
    """The response for a job that failed, or was cancelled by someone else."""
    if job.state is JobState.CANCELLED:
        return _error_response("the job was cancelled", 409)
    try:
        payload = json.loads(job.error or "")
        code = payload["error"]["code"]
    except (ValueError, TypeError, KeyError):
        return _error_response(job.error or "the job failed without a reason", 500)
    return JSONResponse(payload, code if isinstance(code, int) and 400 <= code <= 599 else 500)


def _error_response(message: str, code: int) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "server_error", "param": None, "code": code}}, code)
