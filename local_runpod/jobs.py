"""The queue of jobs and the life of each, without any HTTP."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# How long RunPod keeps the result of a finished job, https://docs.runpod.io/serverless/endpoints/send-requests
RETENTION_SECONDS = 30 * 60.0
RUNSYNC_RETENTION_SECONDS = 60.0

KIB, MIB = 1024, 1024 * 1024


class QueueFullError(Exception):
    """There is no room for this at the moment. The message says what is full."""


class QueueClosedError(Exception):
    """No more jobs are accepted. The message says why."""


@dataclass(frozen=True)
class Limits:
    """How much a queue may hold; it refuses anything beyond that.

    unfinished_jobs: jobs waiting or running. Each may have a connection open, and `common.web_server` allows 4096,
    which leaves a thousand for the workers. kept_jobs: finished jobs; one takes about 2 KB besides its result. bytes:
    inputs, outputs that nobody has fetched, results, and bodies that are being read, all as text. Finished jobs are
    forgotten before anything is refused. stream_bytes: streamed outputs of one job that nobody has fetched.
    progress_reports: reports of one job's progress that nobody has fetched; the oldest go first.
    unread_bytes: streamed outputs that the reader of a stream has not taken yet; beyond that its worker is slowed down.
    workers: how many are remembered.
    """

    unfinished_jobs: int = 3000
    kept_jobs: int = 20_000
    bytes: int = 512 * MIB
    stream_bytes: int = 64 * MIB
    progress_reports: int = 100
    unread_bytes: int = 256 * KIB
    workers: int = 1000


DEFAULT_LIMITS = Limits()


class JobState(StrEnum):
    """A job's state, by RunPod's names."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class RawJson(str):
    """An input as JSON text, handed to the worker as it is, even if no Python value could represent it."""

    __slots__ = ()


@dataclass(frozen=True)
class _ProgressReport:
    """What a worker has said about a job that goes on. after: how many outputs it had streamed by then."""

    value: Any
    after: int
    size_bytes: int


@dataclass(eq=False)
class Job:
    """One job: what a client asked, and what a worker has answered so far. Times are `time.monotonic()` seconds."""

    id: str
    input: Any
    """Released at the job's end, if its size was given."""
    state: JobState = JobState.IN_QUEUE
    worker_id: str | None = None
    stream: list[Any] = field(default_factory=list)
    """The streamed outputs that have not been fetched, in order."""
    has_reader: bool = False
    """Whether somebody reads the stream as it comes; its worker is slowed down if the reader is slow."""
    output: Any = None
    error: str | None = None
    answers: int = 0
    """How often a worker has reported the job done; anything but once is the worker's fault."""
    retention_seconds: float = RETENTION_SECONDS
    submitted_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None
    finished_at: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    # Maintained by the queue: the bytes it counts for this job, and how many callers still need it.
    _input_bytes: int = 0
    _result_bytes: int = 0
    _stream_bytes: deque[int] = field(default_factory=deque)
    _outputs_so_far: int = 0
    _reports: deque[_ProgressReport] = field(default_factory=deque)
    _last_report: _ProgressReport | None = None
    _unfetched_bytes: int = 0
    _pins: int = 0

    def changed(self) -> None:
        """Wake everyone who waits for this job."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def finished(self, timeout_seconds: float | None = None) -> Job:
        """Return once the state is final. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while not self.state.is_final:
                await self._changed.wait()
        return self

    async def taken(self) -> Job:
        """Return once a worker has it, or its state is final."""
        while self.state is JobState.IN_QUEUE:
            await self._changed.wait()
        return self

    async def heard_of(self, timeout_seconds: float | None = None) -> Job:
        """Return once `/stream` has something to tell: an output, progress, or the end. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while not (self.stream or self._reports or self.state.is_final):
                await self._changed.wait()
        return self

    async def streamed(self, count: int, timeout_seconds: float | None = None) -> Job:
        """Return once `count` streamed outputs can be fetched, or the state is final. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while len(self.stream) < count and not self.state.is_final:
                await self._changed.wait()
        return self

    def report(self) -> dict[str, Any]:
        """The answer to `/status`: `id`, `status`, times in milliseconds, and `output` or `error` if there is one.

        The output of a job that goes on is what it last reported of its progress.
        """
        report: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.taken_at is not None:
            report["delayTime"] = _milliseconds(self.submitted_at, self.taken_at)
            report["workerId"] = self.worker_id
        if self.taken_at is not None and self.finished_at is not None:
            report["executionTime"] = _milliseconds(self.taken_at, self.finished_at)
        if self.output is not None:
            report["output"] = self.output
        elif self._last_report is not None:
            report["output"] = self._last_report.value
        if self.error is not None:
            report["error"] = self.error
        return report


class JobQueue:
    """The jobs of one endpoint, within limits.

    Sizes are those of JSON text, in bytes, as it came over HTTP. Jobs and results from within the process are the
    caller's responsibility, and count as nothing unless a size is given.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.jobs: dict[str, Job] = {}
        self.pings: OrderedDict[str, deque[dict[str, str]]] = OrderedDict()
        """Each worker's last heartbeats, oldest first, as their query parameters."""
        self.bytes = 0
        """What counts towards the limit on bytes."""
        self._polls: Counter[str] = Counter()
        """The number of open polls of each worker; every worker that has ever polled has an entry."""
        self._forgotten: Counter[JobState] = Counter()
        self._waiting: deque[Job] = deque()
        self._unfinished = 0
        # Finished jobs by how long they are kept, oldest first. Those that are kept for a shorter time are also the
        # first to go when there is no room.
        self._finished: dict[float, OrderedDict[str, Job]] = {
            RUNSYNC_RETENTION_SECONDS: OrderedDict(),
            RETENTION_SECONDS: OrderedDict(),
        }
        self._arrived = asyncio.Event()
        self._to_stop: OrderedDict[str, deque[str]] = OrderedDict()
        self._stop_asked = asyncio.Event()
        self._draining_because: str | None = None
        self._closed = False

    def submit(
        self,
        job_input: Any,
        *,
        size_bytes: int = 0,
        retention_seconds: float = RETENTION_SECONDS,
        job_id: str | None = None,
    ) -> Job:
        """Queue a job with this input. retention_seconds: one of the two constants above. job_id: one that is free.

        Raises QueueFullError, and QueueClosedError while the queue drains.
        """
        if self._draining_because is not None:
            raise QueueClosedError(self._draining_because)
        if self._unfinished >= self.limits.unfinished_jobs:
            raise QueueFullError(f"{self._unfinished} jobs are waiting or running; try again later")
        self._make_room(size_bytes)
        job = Job(
            id=job_id or str(uuid.uuid4()),
            input=job_input,
            retention_seconds=retention_seconds,
            _input_bytes=size_bytes,
        )
        self.bytes += size_bytes
        self.jobs[job.id] = job
        self._unfinished += 1
        self._waiting.append(job)
        self._arrived.set()
        return job

    @contextmanager
    def receiving(self) -> Generator[Callable[[int], None], None, None]:
        """Count what is being read within this context; gives the function to call with the size of each piece.

        That function raises QueueFullError.
        """
        held = 0

        def count(size_bytes: int) -> None:
            nonlocal held
            self._make_room(size_bytes)
            self.bytes += size_bytes
            held += size_bytes

        try:
            yield count
        finally:
            self.bytes -= held

    async def wait_for_job(self, timeout_seconds: float) -> bool:
        """Return True as soon as a job is waiting, False after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._waiting and self._draining_because is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return False
        return bool(self._waiting)

    def take(self, worker_id: str, most: int) -> list[Job]:
        """Hand up to `most` waiting jobs to a worker, oldest first."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        for job in taken:
            job.state, job.worker_id, job.taken_at = JobState.IN_PROGRESS, worker_id, time.monotonic()
            job.changed()
        return taken

    @contextmanager
    def polled_by(self, worker_id: str) -> Generator[None, None, None]:
        """Count a worker as ready for jobs within this context."""
        if worker_id not in self._polls and len(self._polls) >= self.limits.workers:
            self._polls = +self._polls  # forgets workers without an open poll
        self._polls[worker_id] += 1
        try:
            yield
        finally:
            self._polls[worker_id] -= 1

    def workers(self) -> dict[str, int]:
        """How many workers there are, by the names of RunPod's `/health`. "initializing" means never polled."""
        running = {job.worker_id for job in self.jobs.values() if job.state is JobState.IN_PROGRESS}
        return {
            "idle": len(set(self._polls) - running),
            "initializing": len(set(self.pings) - set(self._polls)),
            "ready": sum(polls > 0 for polls in self._polls.values()),
            "running": len(running),
            "throttled": 0,
        }

    async def wait_for_reader(self, job: Job, timeout_seconds: float) -> bool:
        """Return True once the reader of the job's stream, if it has one, keeps up; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while job.has_reader and job._unfetched_bytes >= self.limits.unread_bytes and not job.state.is_final:
                    await job._changed.wait()
        except TimeoutError:
            return False
        return True

    def add_output(self, job: Job, output: Any, *, size_bytes: int = 0) -> bool:
        """Record one streamed output; a finished job takes no more.

        False if nobody fetches the stream and it has no room for this output. Raises QueueFullError.
        """
        if job.state.is_final:
            return True
        if job._unfetched_bytes + size_bytes > self.limits.stream_bytes:
            return False
        self._make_room(size_bytes)
        self.bytes += size_bytes
        job.stream.append(output)
        job._outputs_so_far += 1
        job._stream_bytes.append(size_bytes)
        job._unfetched_bytes += size_bytes
        job.changed()
        return True

    def fetch(self, job: Job, most: int | None = None) -> list[Any]:
        """The streamed outputs that have not been fetched, up to `most`; they are then dropped, as on RunPod."""
        fetched = job.stream[:most]
        del job.stream[:most]
        size_bytes = sum(job._stream_bytes.popleft() for _ in fetched)
        job._unfetched_bytes -= size_bytes
        if job.id in self.jobs:  # else it has been forgotten, with all its bytes
            self.bytes -= size_bytes
        if fetched:
            job.changed()
        return fetched

    def report_progress(self, job: Job, progress: Any, *, size_bytes: int = 0) -> None:
        """Record what a worker says about a job that goes on; about one that is over, it is too late.

        Raises QueueFullError.
        """
        if job.state.is_final:
            return
        self._make_room(2 * size_bytes)  # as the last report, and among those to fetch
        if len(job._reports) >= self.limits.progress_reports:
            self.bytes -= job._reports.popleft().size_bytes
        if job._last_report is not None:
            self.bytes -= job._last_report.size_bytes
        job._last_report = _ProgressReport(progress, job._outputs_so_far, size_bytes)
        job._reports.append(job._last_report)
        self.bytes += 2 * size_bytes
        job.changed()

    def fetch_with_progress(self, job: Job) -> list[Any]:
        """The streamed outputs and the reports of progress that have not been fetched, in the order they came."""
        reports = deque(self._fetch_reports(job))
        position = job._outputs_so_far - len(job.stream)
        fetched = []
        for output in self.fetch(job):
            while reports and reports[0].after <= position:
                fetched.append(reports.popleft().value)
            fetched.append(output)
            position += 1
        return fetched + [report.value for report in reports]

    def _fetch_reports(self, job: Job) -> list[_ProgressReport]:
        reports = list(job._reports)
        job._reports.clear()
        if job.id in self.jobs:  # else it has been forgotten, with all its bytes
            self.bytes -= sum(report.size_bytes for report in reports)
        return reports

    def finish(self, job: Job, *, output: Any, error: str | None, size_bytes: int = 0) -> None:
        """Record a worker's result. A job that has been cancelled stays cancelled. Raises QueueFullError."""
        if not job.state.is_final:
            self._make_room(size_bytes)
            job.output, job.error, job._result_bytes = output, error, size_bytes
            self.bytes += size_bytes
            self._end(job, JobState.FAILED if error is not None else JobState.COMPLETED)
        job.answers += 1

    def cancel(self, job: Job) -> None:
        """Cancel a job: one that is waiting is never handed out; the worker of a running one is told to stop it."""
        if job.state is JobState.IN_QUEUE:
            self._waiting.remove(job)
        elif job.state is JobState.IN_PROGRESS and job.worker_id is not None:
            self._tell_to_stop(job.worker_id, job.id)
        if not job.state.is_final:
            self._end(job, JobState.CANCELLED)

    def purge(self) -> int:
        """Cancel every job that is still waiting. Returns how many there were."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._end(job, JobState.CANCELLED)
        return len(waiting)

    async def stop_signals(self, worker_id: str, timeout_seconds: float) -> list[str]:
        """The ids of the jobs that this worker must stop, as soon as there are any; empty after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._to_stop.get(worker_id) and not self._closed:
                    self._stop_asked.clear()
                    await self._stop_asked.wait()
        except TimeoutError:
            return []
        return list(self._to_stop.pop(worker_id, ()))

    def drain(self, reason: str) -> None:
        """Take no more jobs: those that are waiting fail at once with the reason, new ones are refused with it.

        Polls for jobs get an empty answer; running jobs go on.
        """
        self._draining_because = self._draining_because or reason
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._fail(job)
        self._arrived.set()

    def close(self, reason: str = "this queue is closed") -> None:
        """Drain, fail the jobs that are still running, and answer every poll, so that the server can end."""
        self.drain(reason)
        for job in list(self.jobs.values()):
            if not job.state.is_final:
                self._fail(job)
        self._closed = True
        self._stop_asked.set()

    def ping(self, worker_id: str, parameters: dict[str, str]) -> None:
        """Record a worker's heartbeat."""
        if worker_id not in self.pings:
            while len(self.pings) >= self.limits.workers:
                self.pings.popitem(last=False)
        self.pings.setdefault(worker_id, deque(maxlen=100)).append(parameters)
        self._forget_expired()  # so that memory is freed even if nobody submits anything

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        kept = Counter(job.state for job in self.jobs.values())
        return {state: kept[state] + self._forgotten[state] for state in JobState}

    @contextmanager
    def kept(self, job: Job) -> Generator[None, None, None]:
        """Do not forget a job within this context."""
        job._pins += 1
        try:
            yield
        finally:
            job._pins -= 1
            if job.state.is_final and not job._pins:
                self._keep_for_now(job)

    def forget(self, job: Job) -> None:
        """Drop a finished job that nobody can ask for any more; it is still counted."""
        if not job.state.is_final:
            return
        self._finished[job.retention_seconds].pop(job.id, None)
        if self.jobs.pop(job.id, None) is not None:
            self._forgotten[job.state] += 1
            self.bytes -= job._unfetched_bytes + job._result_bytes
            self.bytes -= sum(report.size_bytes for report in job._reports)

    def _tell_to_stop(self, worker_id: str, job_id: str) -> None:
        if worker_id not in self._to_stop:
            while len(self._to_stop) >= self.limits.workers:  # workers that are gone and will not ask again
                self._to_stop.popitem(last=False)
            self._to_stop[worker_id] = deque(maxlen=self.limits.unfinished_jobs)
        self._to_stop[worker_id].append(job_id)
        self._stop_asked.set()

    def _fail(self, job: Job) -> None:
        error = {"message": self._draining_because, "type": "server_error", "param": None, "code": 503}
        job.error = json.dumps({"error": error})
        self._end(job, JobState.FAILED)

    def _end(self, job: Job, state: JobState) -> None:
        job.state, job.finished_at = state, time.monotonic()
        self._unfinished -= 1
        if job._input_bytes:
            job.input = None
            self.bytes -= job._input_bytes
            job._input_bytes = 0
        if job._last_report is not None:
            self.bytes -= job._last_report.size_bytes
            job._last_report = None
        if not job._pins:
            self._keep_for_now(job)
        job.changed()

    def _keep_for_now(self, job: Job) -> None:
        if job.id in self.jobs:
            self._finished[job.retention_seconds][job.id] = job
        if sum(map(len, self._finished.values())) > self.limits.kept_jobs:
            self._forget_one()
        self._forget_expired()

    def _make_room(self, size_bytes: int) -> None:
        """Forget finished jobs until this many bytes fit. Raises QueueFullError if that does not help."""
        while self.bytes + size_bytes > self.limits.bytes:
            if not self._forget_one():
                raise QueueFullError(
                    f"the jobs here take up {self.bytes // MIB} of {self.limits.bytes // MIB} MiB; try again later"
                )

    def _forget_one(self) -> bool:
        """Forget the finished job whose result is needed least; False if there is none."""
        for finished in self._finished.values():
            if finished:
                self.forget(next(iter(finished.values())))
                return True
        return False

    def _forget_expired(self) -> None:
        now = time.monotonic()
        for retention_seconds, finished in self._finished.items():
            while finished:
                job = next(iter(finished.values()))
                if job.finished_at is None or job.finished_at > now - retention_seconds:
                    break
                self.forget(job)


def _milliseconds(begin: float, end: float) -> int:
    return round((end - begin) * 1000)
