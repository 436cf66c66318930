"""What workers and clients send, read within limits; what cannot be read or found is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from local_runpod.jobs import Job, JobQueue

# RunPod's limits, https://docs.runpod.io/serverless/endpoints/send-requests
RUN_LIMIT_BYTES = 10 * 1024 * 1024
RUNSYNC_LIMIT_BYTES = 20 * 1024 * 1024
STREAMED_OUTPUT_LIMIT_BYTES = 1024 * 1024


async def read(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises HTTPException 413 as soon as it exceeds the limit."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise HTTPException(413, f"the body is larger than {limit_bytes} bytes")
    except ClientDisconnect:  # a cancelled job's worker hangs up in the middle of its post
        raise HTTPException(400, "the caller hung up") from None
    return bytes(body)


def parse_object(body: bytes, *, strictly: bool = False) -> dict[str, Any]:
    """A JSON object. `strictly` refuses NaN and Infinity too. Raises HTTPException 400."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant if strictly else None)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not valid JSON, or nested too deeply") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return value


def find(queue: JobQueue, job_id: str) -> Job:
    """The job of that id. Raises HTTPException 404."""
    job = queue.jobs.get(job_id)
    if job is None:
        raise HTTPException(404, "job not found; finished jobs are kept for 30 minutes")
    return job


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
