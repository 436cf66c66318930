"""Bringing outputs and results to the platform, again and again while that can help."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from common.errors import AnswerCutOffError, JobError
from serverless.platform import Platform, PlatformError
from serverless.service import Job

log = logging.getLogger("worker.jobs")

# How long a platform that does not take an answer is tried, with growing pauses between. A stream waits less long: its
# client would see the hole, and the final output is still to come.
OUTPUT_RETRY_SECONDS = 60.0
RESULT_RETRY_SECONDS = 10 * 60.0
FIRST_RETRY_PAUSE_SECONDS = 0.25
LONGEST_RETRY_PAUSE_SECONDS = 10.0


class Reporter:
    """What jobs have to say, on its way to the platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def report_output(self, job: Job, output: Any) -> bool:
        """Send an output now; whether it was taken. One that is refused for good is still part of the final result.

        Raises AnswerCutOffError when the platform cannot be reached for long: later outputs must not go without it.
        """
        try:
            await _until_taken(lambda: self._platform.post_output(job, output), OUTPUT_RETRY_SECONDS)
        except PlatformError as error:
            if error.is_final:
                return False
            log.error("job %s: an output could not be sent to the platform: %s", job["id"], error)
            raise AnswerCutOffError("the platform did not take a part of the streamed answer") from None
        return True

    async def report_last_output(self, job: Job, output: Any) -> None:
        """Send an output in one try, whether or not the platform takes it."""
        with suppress(PlatformError):
            await self._platform.post_output(job, output)

    async def report_result(self, job: Job, result: dict[str, Any]) -> None:
        """Send the result. One that is refused for good is replaced by an error that says so."""
        try:
            await _until_taken(lambda: self._platform.post_result(job, result), RESULT_RETRY_SECONDS)
        except PlatformError as error:
            log.error("job %s: the result was not taken by the platform: %s", job["id"], error)
            if "output" in result and error.is_final:
                refused = JobError(f"the platform did not take this job's result: {error}", code=502)
                await self.report_result(job, {"error": refused.as_json()})


async def _until_taken(post: Callable[[], Awaitable[None]], most_seconds: float) -> None:
    """Post until the platform takes it. Raises the last PlatformError when it refuses for good, or for too long."""
    deadline = time.monotonic() + most_seconds
    pause = FIRST_RETRY_PAUSE_SECONDS
    while True:
        try:
            return await post()
        except PlatformError as error:
            if error.is_final or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_RETRY_PAUSE_SECONDS)
