"""Between a platform and the handler: takes jobs while slots are free, runs each, and brings every answer home.

Knows no protocol: a `Platform` takes and posts. What is promised here is that a job once taken is answered or reported
failed, whatever the platform, the handler or a signal does meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from errors import AnswerCutOffError, EngineUnavailableError, JobError, type_and_place
from tasks import cancel

log = logging.getLogger("worker.jobs")

# How the SDK polls (runpod 1.12.0, rp_scale.py): a long poll is given up after 90 s, "too many requests" costs 5 s.
LONG_POLL_SECONDS = 90.0
TOO_MANY_REQUESTS_PAUSE_SECONDS = 5.0
ERROR_PAUSE_SECONDS = 1.0
# A platform without long polls (Waverless) answers "nothing" at once; such a poll is repeated after a pause.
EMPTY_POLL_PAUSE_SECONDS = 0.2
# With no slot free, the number of slots is asked for again after this time; it may have grown by itself.
CONCURRENCY_SECONDS = 1.0
# Slots that become free within this time of each other are filled by one poll: one after the other would cost a round
# trip each. It also lets the results go out first, so that the platform sees a slot free before it is asked to fill it.
GATHERING_SECONDS = 0.005
# When an idle worker is told to stop, a poll in flight may still bring jobs: it is waited for this long.
LAST_POLL_SECONDS = 1.0

# How long a platform that does not take an answer is tried, with growing pauses between. A stream waits less long: its
# client would see the hole, and the final output is still to come.
OUTPUT_RETRY_SECONDS = 60.0
RESULT_RETRY_SECONDS = 10 * 60.0
FIRST_RETRY_PAUSE_SECONDS = 0.25
LONGEST_RETRY_PAUSE_SECONDS = 10.0
# Jobs that are given up at a stop are reported within this time, or never.
LAST_REPORT_SECONDS = 5.0

Job = dict[str, Any]
JobHandler = Callable[[Job], AsyncGenerator[Any, None]]
"""An async generator function of a job. It yields outputs; `{"error": text}` is the last one of a failed job."""


class PlatformError(Exception):
    """A call to the platform failed. status: of its answer, None where there was none.

    never: whether there is no point in asking, since what should be sent cannot be sent.
    """

    def __init__(self, reason: str, status: int | None = None, *, never: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self._never = never

    @property
    def is_final(self) -> bool:
        """Whether the same call can never succeed: the platform understood, and refused."""
        refused = self.status is not None and 400 <= self.status < 500 and self.status not in (408, 425, 429)
        return refused or self._never


class Platform(Protocol):
    """Where jobs come from and answers go. All but `begun` and `ended` raise PlatformError."""

    async def take(self, most: int) -> list[Job]:
        """Wait for jobs; up to `most` of them, or none."""

    async def stopped_jobs(self) -> list[str] | None:
        """Wait for the ids of jobs to stop; None on a platform that never says."""

    async def post_output(self, job: Job, output: Any) -> None:
        """Send one output of a job that goes on."""

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        """Send the end of a job: its `output` or its `error`."""

    def begun(self, job_id: str) -> None:
        """Count a job as in progress."""

    def ended(self, job_id: str) -> None:
        """Count it no longer."""


@dataclass(frozen=True)
class Delivery:
    """In which form a job's outputs go to the platform.

    streamed: whether each is sent as it comes. result: the job's result, made of all of them.
    """

    streamed: bool
    result: Callable[[list[Any]], Any]


def the_only_one(outputs: list[Any]) -> Any:
    """The result of a handler that yields one output."""
    return outputs[0] if outputs else None


def one_object(outputs: list[Any]) -> dict[str, Any]:
    """A result for a platform that takes one JSON object and nothing else; what is none goes under `output`."""
    result = outputs[0] if len(outputs) == 1 else outputs
    return result if isinstance(result, dict) else {"output": result}


STREAMED = Delivery(streamed=True, result=list)


@dataclass
class _Run:
    """One job under way: what it has sent so far. `reporting`: its result is known and on its way."""

    task: asyncio.Task[None]
    outputs: list[Any] = field(default_factory=list)
    reporting: bool = False


class JobLoop:
    """Takes jobs while slots are free and the handler is ready, and runs each in a task of its own."""

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
        poll, 0 takes no more. wait_until_ready: see `serverless.Service`. error_event: an error in the form in which a
        stream that breaks off ends, None where its outputs have no such form.
        """
        self._platform = platform
        self._handler = handler
        self._concurrency = concurrency
        self._capacity = 1
        self._delivery = delivery
        self._wait_until_ready = wait_until_ready
        self._error_event = error_event
        self._runs: dict[str, _Run] = {}
        self._slot_free = asyncio.Event()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._abandoned: JobError | None = None
        self._taking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """The number of jobs taken and not yet answered."""
        return len(self._runs)

    def start(self) -> asyncio.Task[None]:
        """Begin to take jobs, and to listen for the platform's stop signals. The task returned ends with the taking."""
        self._taking = asyncio.create_task(self._take_jobs())
        self._watching = asyncio.create_task(self._watch_stop_signals())
        return self._taking

    async def stop(
        self,
        *,
        timeout_seconds: float,
        hurry: asyncio.Event | None = None,
        reason: str = "the worker stopped before this job was finished",
    ) -> None:
        """Ask for no more jobs; let those in flight finish, then report as failed, with the reason, what has not.

        A poll in flight stays open while there is anything to finish: a platform may not notice that a caller has hung
        up, and would hand it jobs that nobody answers. `hurry` ends the waiting early.
        """
        self._stopping.set()
        self._slot_free.set()
        finishing = asyncio.create_task(self._finish())
        hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
        await asyncio.wait({finishing, hurried}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        self._abandoned = EngineUnavailableError(reason)
        await cancel(finishing, hurried, self._taking)
        await asyncio.sleep(0)  # a job that the last poll brought begins, or its cancellation would go unreported
        for run in self._runs.values():
            if not run.reporting:
                run.task.cancel()
        if tasks := {run.task for run in self._runs.values()}:
            _, unreported = await asyncio.wait(tasks, timeout=LAST_REPORT_SECONDS)
            if unreported:
                log.error("%d jobs could not be reported: the platform does not take their results", len(unreported))
                await cancel(*unreported)
        await cancel(self._watching)

    async def _finish(self) -> None:
        """Return when nothing is in flight; a poll in flight then has a last moment to bring something."""
        while True:
            await self._idle.wait()
            if self._taking is not None:
                await asyncio.wait({self._taking}, timeout=LAST_POLL_SECONDS)
            if not self._runs:
                return

    async def _take_jobs(self) -> None:
        while True:
            try:
                await self._wait_until_ready()
            except JobError:  # never again; whoever runs this loop stops it
                await self._stopping.wait()
            if self._stopping.is_set():
                return
            if (free := self._free_slots()) <= 0:
                self._slot_free.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._slot_free.wait(), CONCURRENCY_SECONDS)
                await self._pause(GATHERING_SECONDS)
                continue
            poll = _Poll("take jobs")
            with poll:
                await self._poll(poll, free)
            await self._pause(poll.pause_seconds)

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
        reporting = sum(run.reporting for run in self._runs.values())
        return self._capacity - len(self._runs) + min(reporting, self._capacity)

    async def _poll(self, poll: _Poll, most: int) -> None:
        """Take what one poll brings, also when this is cancelled while its answer is here already."""
        taking = asyncio.create_task(self._platform.take(most))
        try:
            await asyncio.wait({taking}, timeout=LONG_POLL_SECONDS)
        finally:
            taking.cancel()
            await asyncio.wait({taking})
            if not taking.cancelled():
                for job in taking.result():
                    poll.found = True
                    self._take(job)

    def _take(self, job: Any) -> None:
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
        self._idle.clear()
        task.add_done_callback(lambda _: self._ended(job_id))

    def _ended(self, job_id: str) -> None:
        del self._runs[job_id]
        self._platform.ended(job_id)
        self._slot_free.set()
        if not self._runs:
            self._idle.set()

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
            result = await self._abandon(job, run.outputs, self._abandoned)
        except JobError as error:
            result = {"error": error.as_json()}
        except Exception as exception:
            log.error("job %s: the handler raised %s:\n%s", job["id"], *type_and_place(exception))
            result = {"error": JobError().as_json()}
        run.reporting = True
        self._slot_free.set()
        await self._report(job, result)

    async def _abandon(self, job: Job, outputs: list[Any], error: JobError) -> dict[str, Any]:
        """End a job that is not finished: a stream gets a last event, so that nobody takes it for whole."""
        if self._error_event is not None and any(isinstance(output, str) for output in outputs):
            with suppress(PlatformError):
                await self._platform.post_output(job, self._error_event(error))
        return {"error": error.as_json()}

    async def _answer(self, job: Job, outputs: list[Any]) -> dict[str, Any]:
        """Run the handler, posting each output as it comes; the result to report."""
        refused = 0
        async with aclosing(self._handler(job)) as answer:
            async for output in answer:
                if (error := error_of(output)) is not None:
                    return {"error": error}
                outputs.append(output)
                if self._delivery.streamed:
                    refused += not await self._post_output(job, output)
        if refused:
            log.warning("job %s: %d outputs were refused by the platform; its result has them", job["id"], refused)
        return {"output": self._delivery.result(outputs)}

    async def _post_output(self, job: Job, output: Any) -> bool:
        """Send an output now; whether it was taken. One that is refused for good is still part of the final result.

        Raises AnswerCutOffError when the platform cannot be reached for long: later outputs must not go without it.
        """
        try:
            await _until_taken(lambda: self._platform.post_output(job, output), OUTPUT_RETRY_SECONDS)
        except PlatformError as error:
            if error.is_final:
                return False
            log.error("job %s: an output could not be sent to the platform: %s", job["id"], error)
            raise AnswerCutOffError("the platform did not take a part of the streamed answer") from None
        return True

    async def _report(self, job: Job, result: dict[str, Any]) -> None:
        """Send the result. One that is refused for good is replaced by an error that says so."""
        try:
            await _until_taken(lambda: self._platform.post_result(job, result), RESULT_RETRY_SECONDS)
        except PlatformError as error:
            log.error("job %s: the result was not taken by the platform: %s", job["id"], error)
            if "output" in result and error.is_final:
                refused = JobError(f"the platform did not take this job's result: {error}", code=502)
                await self._report(job, {"error": refused.as_json()})

    async def _watch_stop_signals(self) -> None:
        while True:
            poll = _Poll("listen for stop signals")
            with poll:
                async with asyncio.timeout(LONG_POLL_SECONDS):
                    job_ids = await self._platform.stopped_jobs()
                if job_ids is None:
                    log.warning("this platform has no stop channel: cancelled jobs run to their end")
                    return
                for job_id in job_ids:
                    poll.found = True
                    if run := self._runs.get(job_id):
                        run.task.cancel()
            await asyncio.sleep(poll.pause_seconds)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when the loop is told to stop."""
        if seconds:
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                return


def error_of(output: Any) -> str | None:
    """The error text where an output is a handler's report of failure, else None."""
    if isinstance(output, dict) and output.get("error"):
        return str(output["error"])
    return None


async def _until_taken(post: Callable[[], Awaitable[None]], most_seconds: float) -> None:
    """Post until the platform takes it. Raises the last PlatformError when it refuses for good, or for too long."""
    deadline = time.monotonic() + most_seconds
    pause = FIRST_RETRY_PAUSE_SECONDS
    while True:
        try:
            return await post()
        except PlatformError as error:
            if error.is_final or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_RETRY_PAUSE_SECONDS)


@dataclass
class _Poll:
    """One poll of the platform: swallows what may go wrong in it, and knows how long to wait before the next."""

    what: str
    found: bool = False
    pause_seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        match error:
            case None:
                answered_at_once = time.monotonic() - self._began < ERROR_PAUSE_SECONDS
                self.pause_seconds = EMPTY_POLL_PAUSE_SECONDS if answered_at_once and not self.found else 0.0
            case TimeoutError():
                self.pause_seconds = 0.0
            case PlatformError(status=429):
                self.pause_seconds = TOO_MANY_REQUESTS_PAUSE_SECONDS
            case PlatformError():
                log.warning("could not %s: %s", self.what, error)
                self.pause_seconds = ERROR_PAUSE_SECONDS
        return isinstance(error, (PlatformError, TimeoutError))
