"""Delivering outputs and results to the platform, with retries for as long as they can help.

The promise is "at least once": if the answer to a post is lost, nobody can tell whether the post arrived, so it is sent
again. docs/operations.md says what that means for a client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from common import meters
from common.errors import JobError, type_and_place
from serverless.platform import Platform, PlatformError
from serverless.service import Job

log = logging.getLogger("worker.jobs")

# How long to keep trying if the platform does not take an answer, with growing pauses. A part of a stream is given up
# sooner: its client would notice the gap, and the result is still to come. A whole answer is only offered, since the
# result has it too.
OUTPUT_RETRY_SECONDS = 60.0
OFFER_SECONDS = 5.0
PROGRESS_RETRY_SECONDS = 10.0
RESULT_RETRY_SECONDS = 10 * 60.0
# For the last event of a stream that broke off, which must go before the result.
LAST_EVENT_RETRY_SECONDS = 5 * 60.0
FIRST_RETRY_PAUSE_SECONDS = 0.25
LONGEST_RETRY_PAUSE_SECONDS = 10.0
# A post that fails with an unexpected exception is unlikely to succeed later.
UNEXPECTED_TRIES = 3


class Reporter:
    """Sends the outputs and results of jobs to the platform. Raises nothing but CancelledError."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def report_output(self, job: Job, output: Any) -> PlatformError | None:
        """Send a part of a stream, for as long as its client would wait. Returns the error if it was not taken."""
        error = await _until_taken("output", lambda: self._platform.post_output(job, output), OUTPUT_RETRY_SECONDS)
        if error is not None:
            log.error("job %s: a part of its stream was not taken by the platform: %s", job["id"], error)
        return error

    async def offer_output(self, job: Job, output: Any) -> PlatformError | None:
        """Try once to send a whole answer ahead of the result, which has it too. Returns the error if it failed."""
        try:
            async with asyncio.timeout(OFFER_SECONDS):
                error = await _until_taken("output", lambda: self._platform.post_output(job, output), 0.0)
        except TimeoutError:
            error = PlatformError(f"no answer within {OFFER_SECONDS:g} s")
        if error is not None:
            log.info("job %s: its answer was not taken as an output (%s); the result has it", job["id"], error)
        return error

    async def report_last_event(self, job: Job, event: Any, *, most_seconds: float = LAST_EVENT_RETRY_SECONDS) -> None:
        """Send the event that ends a broken-off stream, as soon as the platform takes it."""
        try:
            async with asyncio.timeout(most_seconds):
                error = await _until_taken("output", lambda: self._platform.post_output(job, event), most_seconds)
        except TimeoutError:
            error = PlatformError(f"no answer within {most_seconds:g} s")
        if error is not None:
            log.error("job %s: its stream could not be ended with an error: %s", job["id"], error)

    async def report_progress(self, job: Job, progress: Any) -> None:
        """Send a report of a job that goes on. One that is not taken is logged: a later one, or the result, will do."""
        error = await _until_taken(
            "progress", lambda: self._platform.post_progress(job, progress), PROGRESS_RETRY_SECONDS
        )
        if error is not None:
            log.warning("job %s: a report of its progress was not taken by the platform: %s", job["id"], error)

    async def report_result(self, job: Job, result: dict[str, Any]) -> dict[str, Any] | None:
        """Send the result. If it is refused for good, send an error that says so instead. Returns what was taken."""
        error = await _until_taken("result", lambda: self._platform.post_result(job, result), RESULT_RETRY_SECONDS)
        if error is None:
            return result
        log.error("job %s: the result was not taken by the platform: %s", job["id"], error)
        if "output" in result and error.is_final:
            refused = JobError(f"the platform did not take this job's result: {error}", code=502)
            rest = {key: value for key, value in result.items() if key != "output"}
            return await self.report_result(job, rest | {"error": refused.as_json()})
        return None


async def _until_taken(kind: str, post: Callable[[], Awaitable[None]], most_seconds: float) -> PlatformError | None:
    """Post until the platform takes it; returns the last error if it refuses for good, or for too long.

    kind: what is posted, for those who count retries.
    """
    deadline = time.monotonic() + most_seconds
    pause, unexpected = FIRST_RETRY_PAUSE_SECONDS, 0
    while True:
        try:
            await post()
            return None
        except PlatformError as exception:
            error = exception
        except Exception as exception:
            log.error("a post to the platform raised %s:\n%s", *type_and_place(exception))
            unexpected += 1
            error = PlatformError(f"unexpected {type(exception).__name__}", never=unexpected >= UNEXPECTED_TRIES)
        if error.is_final or time.monotonic() + pause > deadline:
            return error
        await asyncio.sleep(pause)
        meters.PLATFORM_RETRIES.add(kind)
        pause = min(pause * 2, LONGEST_RETRY_PAUSE_SECONDS)
