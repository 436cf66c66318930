"""Between a platform and the handler: takes jobs while slots are free, runs each, and brings every answer home.

Knows no protocol: a `Platform` takes and posts. What is promised here is that a job once taken is answered or reported
failed, whatever the platform, the handler or a signal does meanwhile.

- `taking`: when to ask for how many jobs.
- `running`: a job, from its handler's first output to its reported result.
- `reporting`: outputs and results, sent until the platform takes them.
- `cancelling`: jobs that the platform stops.
- `polling`: what may go wrong in a poll.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from common.errors import JobError
from common.tasks import cancel
from serverless.cancelling import cancel_stopped_jobs
from serverless.platform import STREAMED, Delivery, Platform
from serverless.running import Runner
from serverless.service import JobHandler
from serverless.taking import Taker

# When an idle worker is told to stop, a poll in flight may still bring jobs: it is waited for this long.
LAST_POLL_SECONDS = 1.0
# Jobs that are given up at a stop are reported within this time, or never.
LAST_REPORT_SECONDS = 5.0


class JobLoop:
    """Takes jobs and has them answered, from `start` to `stop`."""

    def __init__(
        self,
        platform: Platform,
        handler: JobHandler,
        *,
        concurrency: Callable[[int], int],
        wait_until_ready: Callable[[], Awaitable[None]],
        error_event: Callable[[JobError], str] | None = None,
        delivery: Delivery = STREAMED,
    ) -> None:
        """What jobs are run with.

        concurrency: from the number of jobs at once so far (1 at first) to the number from now on; asked before each
        poll, 0 takes no more. wait_until_ready, error_event: see `Service`.
        """
        self._platform = platform
        self._runner = Runner(platform, handler, delivery=delivery, error_event=error_event)
        self._taker = Taker(platform, self._runner, concurrency=concurrency, wait_until_ready=wait_until_ready)
        self._taking: asyncio.Task[None] | None = None
        self._cancelling: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """The number of jobs taken and not yet answered."""
        return len(self._runner)

    def start(self) -> asyncio.Task[None]:
        """Begin to take jobs, and to listen for the platform's stop signals. The task returned ends with the taking."""
        self._taking = asyncio.create_task(self._taker.take_jobs())
        self._cancelling = asyncio.create_task(cancel_stopped_jobs(self._platform, self._runner))
        return self._taking

    async def stop(
        self,
        *,
        timeout_seconds: float,
        hurry: asyncio.Event | None = None,
        reason: str = "the worker stopped before this job was finished",
    ) -> None:
        """Take no more jobs; let those in flight finish; report those that do not in time as failed, with the reason.

        A poll in flight stays open while there is anything to finish: a platform may not notice that a caller has hung
        up, and would hand it jobs that nobody answers. `hurry` ends the waiting early.
        """
        self._taker.stop()
        finishing = asyncio.create_task(self._finish())
        hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
        await asyncio.wait({finishing, hurried}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        self._runner.close(reason)
        await cancel(finishing, hurried, self._taking)
        await self._runner.abandon(timeout_seconds=LAST_REPORT_SECONDS)
        await cancel(self._cancelling)

    async def _finish(self) -> None:
        """Return when nothing is in flight; a poll in flight then has a last moment to bring something."""
        while True:
            await self._runner.idle.wait()
            if self._taking is not None:
                await asyncio.wait({self._taking}, timeout=LAST_POLL_SECONDS)
            if not len(self._runner):
                return
