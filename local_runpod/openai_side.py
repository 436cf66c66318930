"""OpenAI's API over the queue, as on api.runpod.ai under `/openai/`: a call becomes a job, its output the answer.

The job's input is `{"openai_route": "/v1/…", "openai_input": {…}}`, without `openai_input` for a GET. A POST with an
empty body or `{}` also says `"openai_method": "POST"`, since RunPod's own gateway sends an empty `openai_input` for a
GET; a PUT or DELETE names its method too. A query is sent as `openai_query`, without its question mark.

Outputs that are strings are whole server-sent events and are passed on as they come; an unstreamed answer is one
output. A failed job's error is JSON in OpenAI's shape, which includes the status to answer with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from local_runpod import bodies
from local_runpod.jobs import Job, JobQueue, JobState
from local_runpod.refusals import RETRY_AFTER_SECONDS, ends_by_itself, error_event, in_form_of, openai_error

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody reads the answer

_BODY: dict[str, Any] = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {"type": "object", "description": "The body that OpenAI's API takes on this path."},
                "example": {"model": "glm-4.7-flash", "messages": [{"role": "user", "content": "Hello"}]},
            }
        }
    }
}

# The statuses of errors whose `code` is one of OpenAI's words, such as `model_not_found`.
_STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
}
_STATUS_OF_CODE = {"model_not_found": 404}


def openai_side(queue: JobQueue, *, under: str = "/openai", leads_to: str = "") -> APIRouter:
    """The routes over a queue. A call of `{under}/X` asks the engine for `{leads_to}/X`."""
    router = APIRouter(tags=["OpenAI"])
    anything = f"{under}/{{path:path}}"

    @router.get(anything, summary="A GET of OpenAI's API, such as /v1/models", response_model=None)
    async def get(request: Request, path: str) -> Response:
        return await _answer(queue, request, f"{leads_to}/{path}", {})

    @router.post(
        anything,
        summary="A POST of OpenAI's API, such as /v1/chat/completions",
        openapi_extra=_BODY,
        response_model=None,
    )
    async def post(request: Request, path: str) -> Response:
        body = await bodies.read_json(request, bodies.RUNSYNC_LIMIT_BYTES, queue)
        asked = bodies.parse_object(body or b"{}")
        return await _answer(
            queue, request, f"{leads_to}/{path}", {"openai_input": asked} | ({} if asked else {"openai_method": "POST"})
        )

    @router.api_route(anything, methods=["PUT", "DELETE"], include_in_schema=False, response_model=None)
    async def other(request: Request, path: str) -> Response:
        body = await bodies.read_json(request, bodies.RUNSYNC_LIMIT_BYTES, queue)
        asked = {"openai_input": bodies.parse_object(body)} if body else {}
        return await _answer(queue, request, f"{leads_to}/{path}", {"openai_method": request.method, **asked})

    return router


async def _answer(queue: JobQueue, request: Request, route: str, asked: dict[str, Any]) -> Response:
    job_input = {"openai_route": route} | asked
    if query := request.url.query:
        job_input["openai_query"] = query
    text = bodies.as_text(job_input)
    job = queue.submit(text, size_bytes=len(text))
    try:
        if not await unless_caller_leaves(request, job.streamed(1)):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if job.stream and isinstance(job.stream[0], str) and job.stream[0].startswith(("data:", "event:", ":")):
            return _EventStream(queue, job, route)
        if not await unless_caller_leaves(request, job.finished()):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return _whole_answer(job, route)
    finally:
        if not job.has_reader:
            _end(queue, job)


async def unless_caller_leaves(request: Request, happens: Coroutine[Any, Any, Any]) -> bool:
    """Wait for something to happen to the job; False if the caller hangs up first."""
    happening = asyncio.create_task(happens)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({happening, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return happening.done()
    finally:
        happening.cancel()
        leaving.cancel()
        await asyncio.gather(happening, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """A job's events, for as long as the caller stays."""

    def __init__(self, queue: JobQueue, job: Job, route: str) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(queue, job, route), media_type="text/event-stream", headers=headers)
        self._queue = queue
        self._job = job
        job.has_reader = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream, and end the job however that ends; the generator may not even have started."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            _end(self._queue, self._job)


async def _events(queue: JobQueue, job: Job, route: str) -> AsyncGenerator[str, None]:
    """The outputs as they come. The stream of a job that failed ends with an error event, whatever came before."""
    last = ""
    while not job.state.is_final or job.stream:
        await job.streamed(1)
        for output in queue.fetch(job, 1):  # one by one: the queue counts what the caller has not taken
            last = output if isinstance(output, str) else f"data: {json.dumps(output)}\n\n"
            yield last
    if job.state is not JobState.COMPLETED and not ends_by_itself(last):
        yield error_event(route, *_error_of(job))


def _end(queue: JobQueue, job: Job) -> None:
    """A caller of OpenAI's API never learns the job's id, so it is cancelled if it is still running, and never kept."""
    queue.cancel(job)
    queue.forget(job)


def _whole_answer(job: Job, route: str) -> Response:
    if job.state is not JobState.COMPLETED:
        error, status = _error_of(job)
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
        return JSONResponse(in_form_of(route, error, status), status, headers)
    output = job.output[0] if isinstance(job.output, list) and len(job.output) == 1 else job.output
    return PlainTextResponse(output) if isinstance(output, str) else JSONResponse(output)


def _error_of(job: Job) -> tuple[dict[str, Any], int]:
    """The error of a job that failed, or was cancelled by someone else, and the status to answer with."""
    if job.state is JobState.CANCELLED:
        return openai_error("the job was cancelled", 409), 409
    try:
        error = json.loads(job.error or "")["error"]
    except (ValueError, TypeError, KeyError):
        error = None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return openai_error(job.error or "the job failed without a reason", 500), 500
    return error, _status_of(error)


def _status_of(error: dict[str, Any]) -> int:
    code = error.get("code")
    if isinstance(code, int):
        return code if 400 <= code <= 599 else 500
    return _STATUS_OF_CODE.get(str(code)) or _STATUS_OF_TYPE.get(str(error.get("type")), 500)
