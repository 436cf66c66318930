"""Cancelling jobs that the platform stops: a client has cancelled them, or their time is over."""

from __future__ import annotations

import asyncio
import logging

from serverless.platform import Platform
from serverless.polling import LONG_POLL_SECONDS, Poll
from serverless.running import Runner

log = logging.getLogger("worker.jobs")


async def cancel_stopped_jobs(platform: Platform, runner: Runner) -> None:
    """Listen on the platform's stop channel for as long as this runs; returns where there is none."""
    while True:
        with Poll("listen for stop signals") as poll:
            async with asyncio.timeout(LONG_POLL_SECONDS):
                job_ids = await platform.stopped_jobs()
            if job_ids is None:
                log.warning("this platform has no stop channel: cancelled jobs run to their end")
                return
            for job_id in job_ids:
                poll.found = True
                runner.cancel(job_id)
        await asyncio.sleep(poll.pause_seconds)
