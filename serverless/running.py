"""Running jobs: each in its own task, from the handler's first output until the platform has taken the result."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from common.errors import AnswerCutOffError, JobError, UnavailableError, code_of, type_and_place
from common.job_record import JobRecord, Outcome
from common.large_json import LargeJson
from common.tasks import cancel
from serverless.platform import Delivery, Platform, PlatformError
from serverless.progress import LAST_REPORTS_SECONDS, ProgressReports
from serverless.reporting import Reporter
from serverless.service import Job, Service

log = logging.getLogger("worker.jobs")

# No platform has longer ids.
MAX_ID_BYTES = 512
# At a stop: the time for a broken-off stream's last event. It is short, since the result needs the time more.
LAST_EVENT_SECONDS = 1.5
# At a stop: how long a handler may take to clean up before its job is reported without waiting for it.
CLEANUP_SECONDS = 2.0

BROKEN_OFF = "the platform did not take a part of the streamed answer"
TOO_LARGE = (
    "the platform refused a part of this stream as too large (RunPod takes up to 1 MB an output); ask for less in one "
    "event, such as fewer log probabilities or no echo, or without `stream`; the job's result has the whole answer"
)


@dataclass
class _Run:
    """One job in flight: what it has sent so far, and its state."""

    job: Job
    record: JobRecord
    progress: ProgressReports
    task: asyncio.Task[None] = field(init=False)
    outputs: list[Any] = field(default_factory=list)
    """What its result will be made of."""
    has_sent_text: bool = False
    asks_refresh: bool = False
    """The worker shall end after it."""
    has_answered: bool = False
    """Its answer is complete: what is left is to send it. It needs no slot for that."""
    is_reporting: bool = False
    """Its result is known and being sent."""
    is_unwanted: bool = False
    """The platform has stopped it; nobody is waiting for a result."""
    is_reported_apart: bool = False
    """Its handler is still busy; its end is reported by another task."""
    break_off: JobError | None = None
    """Why its stream ended early: a part was not taken."""
    ending: asyncio.Task[None] | None = None
    """Sends that reason to the stream's reader."""
    successor: Job | None = None
    """The same job, handed over again while this run was cleaning up."""


class Runner:
    """The jobs in flight: taken, and not yet answered."""

    def __init__(self, platform: Platform, service: Service, *, delivery: Delivery) -> None:
        """See `JobLoop`."""
        self.slot_free = asyncio.Event()
        """Set whenever a job has ended, or has left its slot."""
        self.idle = asyncio.Event()
        """Set while no job is in flight."""
        self.idle.set()
        self.refresh_asked = asyncio.Event()
        """Set once a job has asked for a fresh worker."""
        self._platform = platform
        self._service = service
        self._delivery = delivery
        self._reporter = Reporter(platform)
        self._runs: dict[str, _Run] = {}
        self._closed: JobError | None = None
        self._has_refused_progress = False

    def __len__(self) -> int:
        """The number of jobs in flight."""
        return len(self._runs)

    @property
    def reporting(self) -> int:
        """How many of them are finished, except that their last output or their result is still being sent."""
        return sum(run.has_answered for run in self._runs.values())

    def begin(self, job: Any) -> bool:
        """Run what the platform has handed over. Returns whether there was something to run."""
        if (job_id := _id_of(job)) is None:
            if job:
                log.error("the platform sent a job without a usable id; there is nobody to answer")
            return False
        if (run := self._runs.get(job_id)) is not None:
            if run.is_unwanted:  # stopped, and now handed over again
                run.successor = job
            return run.is_unwanted
        self._platform.begun(job_id)
        progress = ProgressReports(job_id, lambda value: self._reporter.report_progress(job, value))
        run = self._runs[job_id] = _Run(job, JobRecord.begin(job_id), progress)
        self.idle.clear()
        run.task = asyncio.create_task(self._run(run), name=f"job {job_id}")
        run.task.add_done_callback(lambda task: self._ended(job_id, task))
        return True

    def progress(self, job_id: str, value: Any) -> bool:
        """Send a report of a job's progress; from any thread. False if there is no such job, or no way to send it."""
        if not self._delivery.reports_progress:
            if not self._has_refused_progress:
                self._has_refused_progress = True
                log.warning("this platform takes no reports of a job's progress: progress_update sends nothing here")
            return False
        run = self._runs.get(job_id)
        return run is not None and run.progress.add(value)

    def cancel(self, job_id: str) -> bool:
        """End a job that nobody wants any more; its result is not reported. Returns whether there was such a job."""
        if (run := self._runs.get(job_id)) is None or run.is_unwanted:
            return False
        run.is_unwanted = True
        run.task.cancel()
        return True

    def close(self, reason: str) -> None:
        """Run no more jobs: any that begins from now on fails with this reason."""
        self._closed = UnavailableError(reason)

    async def abandon(self, *, timeout_seconds: float) -> None:
        """Report every unfinished job as failed, with the reason given to `close`.

        Reports that the platform has not taken by the timeout are given up.
        """
        await asyncio.sleep(0)  # lets a job that was only just taken begin, or its cancellation would go unreported
        runs = list(self._runs.values())
        for run in runs:
            if not run.is_reporting:
                run.task.cancel()
        if not runs:
            return
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        await asyncio.wait({run.task for run in runs}, timeout=min(CLEANUP_SECONDS, timeout_seconds))
        reports = {run.task for run in runs}
        for run in runs:
            if not (run.task.done() or run.is_reporting or run.is_unwanted):  # its handler is still busy
                run.is_unwanted = run.is_reported_apart = True
                reports.add(asyncio.create_task(self._report_over_its_head(run)))
        rest = max(deadline - asyncio.get_running_loop().time(), 0.0)
        _, unreported = await asyncio.wait(reports, timeout=rest)
        if unreported:
            log.error("%d jobs could not be reported: the platform did not take their results", len(unreported))
            await cancel(*unreported)

    async def _report_over_its_head(self, run: _Run) -> None:
        await self._report(run, await self._break_off(run, self._reason()))

    def _reason(self) -> JobError:
        return self._closed or JobError()

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        run = self._runs.pop(job_id)
        self._platform.ended(job_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job %s: lost, its task raised %s:\n%s", job_id, *type_and_place(error))
        if not run.is_reported_apart:  # else it has ended already
            run.record.end(Outcome.CANCELLED if run.is_unwanted else Outcome.UNDELIVERED)
        self.slot_free.set()
        if run.successor is not None:
            self.begin(run.successor)
        elif not self._runs:
            self.idle.set()

    async def _run(self, run: _Run) -> None:
        with run.record.in_context():
            try:
                result = await self._result_of(run)
                if not run.is_unwanted:
                    await self._report(run, result)
            finally:
                await run.progress.drop()
                await cancel(run.ending)

    async def _result_of(self, run: _Run) -> dict[str, Any]:
        """Run the handler to its end, whatever it raises; returns the result to report.

        Raises CancelledError if the platform has stopped the job.
        """
        job_id = run.job["id"]
        if self._closed is not None:
            return {"error": self._closed.as_json()}
        try:
            return await self._answer(run)
        except asyncio.CancelledError:
            if run.is_unwanted:
                log.info("job %s: cancelled, by its client or by a time limit of the platform", job_id)
                raise
            if self._closed is None:
                log.error("job %s: the handler cancelled itself", job_id)
            return await self._break_off(run, self._reason())
        except JobError as error:
            return {"error": error.as_json()}
        except BaseException as exception:  # SystemExit and the like too: it ends this job and no other
            log.error("job %s: the handler raised %s:\n%s", job_id, *type_and_place(exception))
            return {"error": JobError().as_json()}

    async def _answer(self, run: _Run) -> dict[str, Any]:
        """Run the handler, sending each output as it comes; returns the result to report."""
        job = run.job
        if isinstance(large := job.get("input"), LargeJson) and not self._service.takes_large_json:
            job = job | {"input": await asyncio.to_thread(json.loads, large.text)}
        has_left_out = False
        # The handler may do with its job what it likes; results go by the id that the platform gave.
        async with aclosing(self._service.handler(dict(job))) as answer:
            async for output in answer:
                reading = self._service.read(output)
                run.asks_refresh = run.asks_refresh or reading.asks_refresh
                if reading.error is not None:
                    return {"error": reading.error}
                has_left_out = has_left_out or reading.is_empty
                if not reading.is_empty:
                    await self._deliver(run, reading.output)
        if run.break_off is not None and not self._delivery.is_whole:
            return {"error": run.break_off.as_json()}
        if has_left_out and not (run.outputs or self._delivery.streamed):
            return {}
        return {"output": self._delivery.result(run.outputs)}

    async def _deliver(self, run: _Run, output: Any) -> None:
        """Keep an output for the result that it will be part of, and send it if it is part of a stream."""
        if self._delivery.is_whole:
            run.outputs.append(output)
        if self._delivery.streamed and run.break_off is None:
            await self._send(run, output)

    async def _send(self, run: _Run, output: Any) -> None:
        """Send an output now. If a part of a stream is not taken, nothing follows it but an error event."""
        run.has_sent_text = run.has_sent_text or isinstance(output, str)
        is_whole = self._service.is_whole_answer(output)
        if is_whole or self._service.ends_answer(output):
            self._leave_slot(run)
        send = self._reporter.offer_output if is_whole else self._reporter.report_output
        error = await send(run.job, output)
        run.record.outputs += error is None
        if error is not None and not is_whole:
            run.break_off = _break_off_of(error)
            if self._service.error_event is not None:
                event = self._service.error_event(run.job, run.break_off)
                run.ending = asyncio.create_task(self._reporter.report_last_event(run.job, event))

    def _leave_slot(self, run: _Run) -> None:
        run.has_answered = True
        self.slot_free.set()

    async def _break_off(self, run: _Run, error: JobError) -> dict[str, Any]:
        """End an unfinished job: a stream gets a last event, so that nobody takes it for complete."""
        event_form = self._service.error_event
        if event_form is not None and run.break_off is None and run.has_sent_text:
            event = event_form(run.job, error)
            await self._reporter.report_last_event(run.job, event, most_seconds=LAST_EVENT_SECONDS)
        return {"error": error.as_json()}

    async def _report(self, run: _Run, result: dict[str, Any]) -> None:
        run.is_reporting = True
        if run.asks_refresh or self._service.refreshes:
            result["stopPod"] = True  # as both SDKs ask for it (runpod 1.12.0, rp_job.py)
            self.refresh_asked.set()
        self._leave_slot(run)
        await run.progress.finish(LAST_EVENT_SECONDS if self._closed else LAST_REPORTS_SECONDS)
        if run.ending is not None:
            # The stream's last event goes first: once the platform has the result, it takes no more events.
            await asyncio.wait({run.ending}, timeout=LAST_EVENT_SECONDS if self._closed else None)
        taken = await self._reporter.report_result(run.job, result)
        run.record.end(*_end_of(taken))


def _end_of(taken: dict[str, Any] | None) -> tuple[Outcome, int | None]:
    """How a job ended, from the result that the platform took; its code, if that says one."""
    if taken is None:
        return Outcome.UNDELIVERED, None
    return (Outcome.FAILED, code_of(taken["error"])) if "error" in taken else (Outcome.COMPLETED, HTTPStatus.OK)


def _id_of(job: Any) -> str | None:
    """A job's id, if it can be part of a URL's path. Even quoted, dot segments and half a surrogate pair cannot."""
    job_id = job.get("id") if isinstance(job, dict) else None
    if not isinstance(job_id, str) or job_id in ("", ".", ".."):
        return None
    try:
        return job_id if len(job_id.encode()) <= MAX_ID_BYTES else None
    except UnicodeEncodeError:
        return None


def _break_off_of(error: PlatformError) -> JobError:
    """What the reader of a stream is told when a part of it was not taken."""
    if error.status == 413:
        return JobError(TOO_LARGE, code=413, kind="invalid_request_error")
    return AnswerCutOffError(f"{BROKEN_OFF}: {error}" if error.is_unsendable else BROKEN_OFF)
