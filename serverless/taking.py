"""Taking jobs: one poll after the other while slots are free and the service is ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from common.errors import JobError
from serverless.platform import Platform
from serverless.polling import Poll, Poller
from serverless.running import Runner

log = logging.getLogger("worker.jobs")

# How long a poll that is under way at a stop may need to hand over what it has begun to.
LAST_TAKE_SECONDS = 30.0
# With no slot free, the number of slots is asked for again after this time; it may have grown by itself.
CONCURRENCY_SECONDS = 1.0
# Slots that become free within this time of each other are filled by one poll: one after the other would cost a round
# trip each. It also lets the results go out first, so that the platform sees a slot free before it is asked to fill it.
GATHERING_SECONDS = 0.005


class Taker:
    """Takes jobs from a platform and has them run."""

    def __init__(
        self,
        platform: Platform,
        runner: Runner,
        *,
        concurrency: Callable[[int], int],
        wait_until_ready: Callable[[], Awaitable[None]],
    ) -> None:
        """concurrency, wait_until_ready: see `JobLoop`."""
        self._platform = platform
        self._runner = runner
        self._concurrency = concurrency
        self._capacity = 1
        self._wait_until_ready = wait_until_ready
        self._stopping = asyncio.Event()
        self._poller = Poller("take jobs")

    def stop(self) -> None:
        """Begin no further poll; one that is in flight goes on."""
        self._stopping.set()
        self._runner.slot_free.set()

    async def take_jobs(self) -> None:
        """Take jobs until told to stop."""
        while True:
            try:
                await self._wait_until_ready()
            except JobError:  # never again; whoever runs this loop stops it
                await self._stopping.wait()
            if self._stopping.is_set():
                return
            if (free := self._free_slots()) <= 0:
                await self._wait_for_slot()
                continue
            with self._poller.poll() as poll:
                await self._take(poll, free)
            await self._pause(self._poller.pause_seconds)

    def _free_slots(self) -> int:
        """How many more jobs may be taken now.

        A job whose result is on its way leaves its slot to the next, up to as many as there are slots: more results
        that the platform does not take would only pile up.

        A user's function that fails leaves the number of slots as it was.
        """
        try:
            self._capacity = int(self._concurrency(self._capacity))
        except Exception as error:
            log.error("the concurrency modifier raised %s; %d at once as before", type(error).__name__, self._capacity)
        return self._capacity - len(self._runner) + min(self._runner.reporting, self._capacity)

    async def _wait_for_slot(self) -> None:
        self._runner.slot_free.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._runner.slot_free.wait(), CONCURRENCY_SECONDS)
        await self._pause(GATHERING_SECONDS)

    async def _take(self, poll: Poll, most: int) -> None:
        """Take what one poll brings, even when this is cancelled while the platform hands it over."""
        taking = asyncio.create_task(self._platform.take(most))
        try:
            await asyncio.wait({taking})
        finally:
            if not taking.done():
                taking.cancel()
                await asyncio.wait({taking}, timeout=LAST_TAKE_SECONDS)
            if taking.done() and not taking.cancelled():
                for job in taking.result():
                    poll.found |= self._runner.begin(job)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when told to stop."""
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
