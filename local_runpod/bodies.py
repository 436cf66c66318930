"""Reads what workers and clients send, within limits; refuses, with a reason, what cannot be read or found."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from local_runpod.jobs import Job, JobQueue, RawJson

# RunPod's limits, https://docs.runpod.io/serverless/endpoints/send-requests
RUN_LIMIT_BYTES = 10 * 1024 * 1024
RUNSYNC_LIMIT_BYTES = 20 * 1024 * 1024
STREAMED_OUTPUT_LIMIT_BYTES = 1024 * 1024
JSON_WITH_CURL = "With curl, add -H 'Content-Type: application/json'"


async def read(request: Request, limit_bytes: int, queue: JobQueue | None = None) -> bytes:
    """The whole body. Raises HTTPException 413 as soon as it exceeds the limit.

    queue: counts what has been read so far, with everything else in memory; its QueueFullError is raised too.
    """
    body = bytearray()
    with queue.receiving() if queue else nullcontext() as count:
        try:
            async for chunk in request.stream():
                if count is not None:
                    count(len(chunk))
                body += chunk
                if len(body) > limit_bytes:
                    raise HTTPException(413, f"the body is larger than {limit_bytes} bytes")
        except ClientDisconnect:  # a cancelled job's worker hangs up in the middle of its post
            raise HTTPException(400, "the caller hung up") from None
        return bytes(body)


async def read_json(request: Request, limit_bytes: int, queue: JobQueue) -> bytes:
    """A client's whole body. Raises HTTPException 415 if its content type is not JSON, and otherwise as `read` does.

    For any page, a browser would send other content types to this machine without asking.
    """
    body = await read(request, limit_bytes, queue)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and content_type != "application/json":
        said = f"its Content-Type is {content_type[:80]!r}" if content_type else "it has no Content-Type"
        raise HTTPException(415, f"the body must be sent as JSON; {said}. {JSON_WITH_CURL}")
    return body


def parse_object(body: bytes, *, strictly: bool = False) -> dict[str, Any]:
    """A JSON object. `strictly` refuses NaN and Infinity too. Raises HTTPException 400."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant if strictly else None)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not valid JSON, or nested too deeply") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return value


def as_text(job_input: Any) -> RawJson:
    """A job's input as the text that a worker gets: Python objects can take twenty times as much memory.

    In ASCII, since an input may contain half of a surrogate pair, which UTF-8 cannot. Raises HTTPException 400.
    """
    try:
        return RawJson(json.dumps(job_input))
    except RecursionError:
        raise HTTPException(400, "the body is nested too deeply") from None


def find(queue: JobQueue, job_id: str) -> Job:
    """The job of that id. Raises HTTPException 404."""
    job = queue.jobs.get(job_id)
    if job is None:
        raise HTTPException(
            404,
            "job not found; finished jobs are kept for 30 minutes (those of /runsync for one minute), or for less if "
            "newer ones need the room",
        )
    return job


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
