"""Running jobs: each in a task of its own, from the handler's first output to the platform's receipt of the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from common.errors import JobError, UnavailableError, type_and_place
from common.tasks import cancel
from serverless.platform import Delivery, Platform
from serverless.reporting import Reporter
from serverless.service import Job, JobHandler, error_of

log = logging.getLogger("worker.jobs")


@dataclass
class _Run:
    """One job under way: what it has sent so far. `reporting`: its result is known and on its way."""

    task: asyncio.Task[None]
    outputs: list[Any] = field(default_factory=list)
    reporting: bool = False


class Runner:
    """The jobs in flight: taken, and not yet answered."""

    def __init__(
        self,
        platform: Platform,
        handler: JobHandler,
        *,
        delivery: Delivery,
        error_event: Callable[[JobError], str] | None,
    ) -> None:
        """What jobs are run with; see `JobLoop`."""
        self.slot_free = asyncio.Event()
        """Set whenever a job has ended, or has left its slot."""
        self.idle = asyncio.Event()
        """Set while no job is in flight."""
        self.idle.set()
        self._platform = platform
        self._handler = handler
        self._delivery = delivery
        self._error_event = error_event
        self._reporter = Reporter(platform)
        self._runs: dict[str, _Run] = {}
        self._abandoned: JobError | None = None

    def __len__(self) -> int:
        """The number of jobs in flight."""
        return len(self._runs)

    @property
    def reporting(self) -> int:
        """How many of them are over but for their result, which is on its way."""
        return sum(run.reporting for run in self._runs.values())

    def begin(self, job: Any) -> None:
        """Run what the platform has handed over."""
        job_id = job.get("id") if isinstance(job, dict) else None
        if not isinstance(job_id, str) or not job_id:
            log.error("the platform sent a job without an id; there is nobody to answer")
            return
        if job_id in self._runs:
            log.warning("job %s: sent again while it is being answered", job_id)
            return
        self._platform.begun(job_id)
        task = asyncio.create_task(self._run(job))
        self._runs[job_id] = _Run(task)
        self.idle.clear()
        task.add_done_callback(lambda _: self._ended(job_id))

    def cancel(self, job_id: str) -> None:
        """End a job that nobody wants any more; its result is not reported."""
        if run := self._runs.get(job_id):
            run.task.cancel()

    def close(self, reason: str) -> None:
        """Run no more jobs: one that begins from now on fails with the reason."""
        self._abandoned = UnavailableError(reason)

    async def abandon(self, *, timeout_seconds: float) -> None:
        """Report every job that is not finished as failed, with the reason of `close`.

        Reports that the platform has not taken by the timeout are given up.
        """
        await asyncio.sleep(0)  # a job that has only just been taken begins, or its cancellation would go unreported
        for run in self._runs.values():
            if not run.reporting:
                run.task.cancel()
        if tasks := {run.task for run in self._runs.values()}:
            _, unreported = await asyncio.wait(tasks, timeout=timeout_seconds)
            if unreported:
                log.error("%d jobs could not be reported: the platform does not take their results", len(unreported))
                await cancel(*unreported)

    def _ended(self, job_id: str) -> None:
        del self._runs[job_id]
        self._platform.ended(job_id)
        self.slot_free.set()
        if not self._runs:
            self.idle.set()

    async def _run(self, job: Job) -> None:
        run = self._runs[job["id"]]
        try:
            if self._abandoned is not None:
                raise self._abandoned
            result = await self._answer(job, run.outputs)
        except asyncio.CancelledError:
            if self._abandoned is None:
                log.info("job %s: stopped by the platform", job["id"])
                raise
            result = await self._break_off(job, run.outputs, self._abandoned)
        except JobError as error:
            result = {"error": error.as_json()}
        except Exception as exception:
            log.error("job %s: the handler raised %s:\n%s", job["id"], *type_and_place(exception))
            result = {"error": JobError().as_json()}
        run.reporting = True
        self.slot_free.set()
        await self._reporter.report_result(job, result)

    async def _answer(self, job: Job, outputs: list[Any]) -> dict[str, Any]:
        """Run the handler, sending each output as it comes; the result to report."""
        refused = 0
        async with aclosing(self._handler(job)) as answer:
            async for output in answer:
                if (error := error_of(output)) is not None:
                    return {"error": error}
                outputs.append(output)
                if self._delivery.streamed:
                    refused += not await self._reporter.report_output(job, output)
        if refused:
            log.warning("job %s: %d outputs were refused by the platform; its result has them", job["id"], refused)
        return {"output": self._delivery.result(outputs)}

    async def _break_off(self, job: Job, outputs: list[Any], error: JobError) -> dict[str, Any]:
        """End a job that is not finished: a stream gets a last event, so that nobody takes it for whole."""
        if self._error_event is not None and any(isinstance(output, str) for output in outputs):
            await self._reporter.report_last_output(job, self._error_event(error))
        return {"error": error.as_json()}
