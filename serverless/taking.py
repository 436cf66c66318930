"""Taking jobs: one poll after another while slots are free and the service is ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from common import meters
from common.errors import JobError
from common.tasks import cancel
from serverless.platform import Platform
from serverless.polling import Poll, Poller
from serverless.running import Runner
from serverless.service import Capacity

log = logging.getLogger("worker.jobs")

# At a stop: how long a poll that has begun to hand over jobs may take to finish.
LAST_TAKE_SECONDS = 30.0
# With no slot free, the number of slots is asked for again after this time; it may have grown.
CONCURRENCY_SECONDS = 1.0
# Slots that become free within this time of each other are filled by one poll: filling them one by one would cost a
# round trip each. The results also go out first, so the platform sees a free slot before it is asked to fill it.
GATHERING_SECONDS = 0.005


class Taker:
    """Takes jobs from a platform and has them run."""

    def __init__(
        self,
        platform: Platform,
        runner: Runner,
        *,
        concurrency: Callable[[int], int] | None = None,
        capacity: Capacity | None = None,
        wait_until_ready: Callable[[], Awaitable[None]],
    ) -> None:
        """concurrency, wait_until_ready: see `JobLoop`. capacity: what the service can take, where that decides."""
        self._platform = platform
        self._runner = runner
        self._concurrency = concurrency or ((lambda _: capacity.at_once) if capacity is not None else lambda _: 1)
        self._capacity = capacity
        self._at_once = 1
        if capacity is None:
            meters.CAPACITY_LIMIT.set(1, "fixed")
        self._wait_until_ready = wait_until_ready
        self._stopping = asyncio.Event()
        self._poller = Poller("take jobs")

    def stop(self) -> None:
        """Start no more polls; one that is in flight goes on."""
        self._stopping.set()
        self._runner.slot_free.set()

    async def take_jobs(self) -> None:
        """Take jobs until told to stop."""
        while True:
            try:
                await self._wait_until_ready()
            except JobError:  # it never will be; whoever runs this loop stops it
                await self._stopping.wait()
            if self._stopping.is_set() or self._runner.refresh_asked.is_set():
                return
            if (free := self._free_slots()) <= 0:
                await self._wait_for_slot()
                continue
            with self._poller.poll() as poll:
                await self._take(poll, free)
            await self._pause(self._poller.pause_seconds)

    def _free_slots(self) -> int:
        """How many more jobs may be taken now.

        A job whose result is being sent frees its slot, but no more jobs do so than there are slots: if the platform
        does not take results, they would only pile up.

        If the user's function fails, the number of slots stays as it was.
        """
        try:
            self._at_once = int(self._concurrency(self._at_once))
        except Exception as error:
            log.error("the concurrency modifier raised %s; still %d jobs at once", type(error).__name__, self._at_once)
        meters.CAPACITY.set(self._at_once)
        return self._at_once - len(self._runner) + min(self._runner.reporting, self._at_once)

    async def _wait_for_slot(self) -> None:
        """Wait until a job ends, the service can take more, or it is time to ask for the number of slots again."""
        self._runner.slot_free.clear()
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self._runner.slot_free.wait())]
        if self._capacity is not None:
            waiting.append(asyncio.create_task(self._capacity.wait_until_above(self._at_once)))
        try:
            await asyncio.wait(waiting, timeout=CONCURRENCY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*waiting)
        await self._pause(GATHERING_SECONDS)

    async def _take(self, poll: Poll, most: int) -> None:
        """Take what one poll brings, even if this is cancelled while the platform hands it over."""
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
