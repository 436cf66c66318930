"""Cancelling jobs that the platform stops: a client has cancelled them, or they have timed out."""

from __future__ import annotations

import asyncio
import logging

from serverless.platform import Platform
from serverless.polling import Poller
from serverless.running import Runner

log = logging.getLogger("worker.jobs")

# A platform that seems to have no stop channel is asked again now and then: it may only be down.
NO_CHANNEL_SECONDS = 60.0


async def cancel_stopped_jobs(platform: Platform, runner: Runner) -> None:
    """Listen on the platform's stop channel until cancelled."""
    poller, has_channel = Poller("listen for stop signals"), True
    while True:
        with poller.poll() as poll:
            job_ids = await platform.stopped_jobs()
            if job_ids is None and has_channel:
                log.warning("this platform has no stop channel: cancelled jobs run to their end")
            has_channel = job_ids is not None
            for job_id in job_ids or ():
                poll.found |= runner.cancel(job_id)
        await asyncio.sleep(poller.pause_seconds if has_channel else NO_CHANNEL_SECONDS)
