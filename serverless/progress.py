"""Progress reports: what a handler says about a job that goes on.

RunPod takes one as `{"status": "IN_PROGRESS", "output": …}` on the channel of results and shows it in `/status`.
Handlers report from any thread, so a report is only put down where they call; the job's own task on the event loop
sends it. A job's reports are sent one after the other, and before its result or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from common.tasks import cancel
from serverless.encoding import NotJsonError, copied
from serverless.service import Job

log = logging.getLogger("worker.jobs")

# Reports of one job that the platform has not taken yet; beyond that the oldest go, since newer ones replace them.
MOST_WAITING = 100
# How long a finished job's result waits for the reports before it.
LAST_REPORTS_SECONDS = 5.0

Receiver = Callable[[str, Any], bool]
"""Takes a report of the job of that id, from any thread; False if no such job is running."""

_receiver: Receiver | None = None


@contextmanager
def received_by(receiver: Receiver) -> Generator[None, None, None]:
    """Within this context, `progress_update` hands reports to this receiver."""
    global _receiver
    before, _receiver = _receiver, receiver
    try:
        yield
    finally:
        _receiver = before


def progress_update(job: Job, progress: Any) -> bool:
    """Report progress of a job that goes on; from any thread, in any handler. Returns whether it will be sent.

    job: what the handler was called with. progress: any JSON value, as it is now: changing it later changes nothing.
    Never raises and never waits, since a job must not fail because of a report: one that is not JSON, or that comes
    when its job is over, is logged and dropped.
    """
    job_id = job.get("id") if isinstance(job, dict) else getattr(job, "id", job)
    if not isinstance(job_id, str):
        log.warning("progress_update: expected the job that the handler was called with, not %s", type(job).__name__)
        return False
    try:
        value = copied(progress)
    except NotJsonError:
        log.error("job %s: its progress is not JSON (%s)", job_id, type(progress).__name__)
        return False
    if _receiver is None or not _receiver(job_id, value):
        log.debug("job %s: progress of a job that is not running", job_id)
        return False
    return True


class ProgressReports:
    """The reports of one job, sent in order while it runs."""

    def __init__(self, job_id: str, post: Callable[[Any], Awaitable[None]]) -> None:
        """post: sends one report; raises nothing but CancelledError. Created on the event loop that will call it."""
        self._job_id = job_id
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Any] = deque(maxlen=MOST_WAITING)
        self._replaced = 0
        self._sending: asyncio.Task[None] | None = None
        self._is_over = False

    def add(self, value: Any) -> bool:
        """Send this report as soon as those before it are sent; from any thread. False if the job is over."""
        if self._is_over:
            return False
        self._replaced += len(self._waiting) == MOST_WAITING
        self._waiting.append(value)
        with suppress(RuntimeError):  # the loop has ended, and everything with it
            self._loop.call_soon_threadsafe(self._send_soon)
        return True

    async def finish(self, timeout_seconds: float = LAST_REPORTS_SECONDS) -> None:
        """Take no more; return when all are sent, or given up after the timeout."""
        self._is_over = True
        self._send_soon()
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=timeout_seconds)
            await self.drop()

    async def drop(self) -> None:
        """Take no more, and give up what is not sent."""
        self._is_over = True
        if self._sending is not None:
            await cancel(self._sending)
        lost = self._replaced + len(self._waiting)
        self._replaced = 0
        self._waiting.clear()
        if lost:
            log.info("job %s: %d reports of its progress were not sent", self._job_id, lost)

    def _send_soon(self) -> None:
        if self._waiting and (self._sending is None or self._sending.done()):
            self._sending = self._loop.create_task(self._send(), name=f"progress of job {self._job_id}")

    async def _send(self) -> None:
        while self._waiting:
            await self._post(self._waiting.popleft())
