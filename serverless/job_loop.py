"""Between a platform and the handler: takes jobs while slots are free, runs each, and delivers every answer.

Knows no protocol: a `Platform` takes and posts. The promise made here is that a job, once taken, is answered or
reported as failed, whatever the platform, the handler or a signal does in the meantime.

- `taking`: when to ask for jobs, and for how many.
- `running`: a job, from its handler's first output to its reported result.
- `reporting`: outputs and results, sent until the platform takes them.
- `cancelling`: jobs that the platform stops.
- `polling`: what may go wrong in a poll.

Each task has an owner that notices when it ends: `Runner` reports how the tasks of jobs ended, and the two that take
and cancel jobs are watched by whoever runs the loop (`JobLoop.wait_for_failure`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from common.tasks import cancel, reason_of_end
from serverless.cancelling import cancel_stopped_jobs
from serverless.metered import MeteredPlatform
from serverless.platform import STREAMED, Delivery, Platform
from serverless.running import Runner
from serverless.service import Service
from serverless.taking import LAST_TAKE_SECONDS, Taker

log = logging.getLogger("worker.jobs")

# When an idle worker is told to stop, a poll in flight may still bring jobs: this is how long to wait for it.
LAST_POLL_SECONDS = 1.0
# Jobs that are given up at a stop are reported within this time, or not at all.
LAST_REPORT_SECONDS = 5.0


class JobLoop:
    """Takes jobs and has them answered, from `start` to `stop`."""

    def __init__(
        self,
        platform: Platform,
        service: Service,
        *,
        concurrency: Callable[[int], int] | None,
        delivery: Delivery = STREAMED,
    ) -> None:
        """concurrency: takes the current number of jobs at once (1 at first) and returns the new one; called before
        each poll; 0 takes no more. None: what the service can take, or one if it does not know.
        """
        self._platform: Platform = MeteredPlatform(platform)
        self._runner = Runner(self._platform, service, delivery=delivery)
        self._taker = Taker(
            self._platform,
            self._runner,
            concurrency=concurrency,
            capacity=service.capacity if concurrency is None else None,
            wait_until_ready=service.wait_until_ready,
        )
        self._taking: asyncio.Task[None] | None = None
        self._cancelling: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """The number of jobs taken and not yet answered."""
        return len(self._runner)

    def progress(self, job_id: str, value: Any) -> bool:
        """Send a report of a job's progress; see `serverless.progress.Receiver`."""
        return self._runner.progress(job_id, value)

    def start(self) -> None:
        """Start taking jobs, and listening for the platform's stop signals."""
        self._taking = asyncio.create_task(self._taker.take_jobs(), name="taking jobs")
        self._cancelling = asyncio.create_task(
            cancel_stopped_jobs(self._platform, self._runner), name="listening for stop signals"
        )

    async def wait_for_failure(self) -> str:
        """Return the reason once taking or listening has ended by itself; neither should before `stop`.

        Taking ends by itself, and rightly, once a job has asked for a fresh worker.
        """
        tasks = {task for task in (self._taking, self._cancelling) if task is not None}
        while True:
            ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._runner.refresh_asked.is_set():
                ended = {task for task in ended if task is not self._taking or task.cancelled() or task.exception()}
            if ended:
                return "; ".join(reason_of_end(task, task.get_name()) for task in ended)

    async def drain_for_refresh(self) -> None:
        """Return once a job has asked for a fresh worker and those in flight are answered; no more are taken then."""
        await self._runner.refresh_asked.wait()
        log.info("a job has asked for a fresh worker: finishing %d jobs", self.in_flight)
        self._taker.stop()
        await self._finish()

    async def stop(
        self,
        *,
        timeout_seconds: float,
        hurry: asyncio.Event | None = None,
        reason: str = "the worker stopped before this job was finished",
    ) -> None:
        """Take no more jobs; let those in flight finish; report the ones that do not finish in time as failed.

        A poll in flight stays open while there is anything to finish: a platform may not notice that we hung up, and
        would hand us jobs that nobody answers. `hurry` ends the waiting early. reason: why the jobs failed.
        """
        self._taker.stop()
        finishing = asyncio.create_task(self._finish())
        hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
        await asyncio.wait({finishing, hurried}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        self._runner.close(reason)
        await cancel(finishing, hurried, self._taking, timeout_seconds=LAST_TAKE_SECONDS + 1)
        await self._runner.abandon(timeout_seconds=LAST_REPORT_SECONDS)
        await cancel(self._cancelling)

    async def _finish(self) -> None:
        """Return when nothing is in flight; a poll in flight then gets a last moment to bring something."""
        while True:
            await self._runner.idle.wait()
            if self._taking is not None:
                await asyncio.wait({self._taking}, timeout=LAST_POLL_SECONDS)
            if not len(self._runner):
                return
