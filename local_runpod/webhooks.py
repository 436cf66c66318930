"""Finished jobs, posted to the address that their client gave."""

from __future__ import annotations

import asyncio
import logging

import httpx

from local_runpod.jobs import Job

log = logging.getLogger("local_runpod.webhooks")

# https://docs.runpod.io/serverless/endpoints/send-requests#webhook-notifications: two more tries, 10 s apart.
TRIES = 3
PAUSE_SECONDS = 10.0
TIMEOUT_SECONDS = 10.0


class Webhooks:
    """The announcements under way."""

    def __init__(self, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._pause_seconds = pause_seconds
        self._under_way: set[asyncio.Task[None]] = set()

    def announce(self, job: Job, url: str) -> None:
        """Post the job's report to this address once the job is over."""
        task = asyncio.create_task(self._announce(job, url))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _announce(self, job: Job, url: str) -> None:
        await job.finished()
        report = job.report()
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            for attempt in range(TRIES):
                await asyncio.sleep(self._pause_seconds if attempt else 0)
                try:
                    if (await client.post(url, json=report)).is_success:
                        return
                except httpx.HTTPError:
                    continue
        log.warning("job %s: its webhook did not take the result", job.id)
