"""The queue of jobs and the life of each, without any HTTP."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

RETENTION_SECONDS = 30 * 60  # RunPod keeps the result of an asynchronous job for 30 minutes


class JobState(StrEnum):
    """A job's state, in RunPod's words."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


class RawJson(str):
    """An input as JSON text, handed to the worker as it is: also what no Python value could hold."""

    __slots__ = ()


@dataclass
class Job:
    """One job: what a client asked, and what a worker has said to it so far. Times are `time.monotonic()` seconds."""

    id: str
    input: Any
    state: JobState = JobState.IN_QUEUE
    worker_id: str | None = None
    stream: list[Any] = field(default_factory=list)
    """Every streamed output, in order."""
    fetched: int = 0
    """How many of them clients have fetched."""
    output: Any = None
    error: str | None = None
    answers: int = 0
    """How often a worker has reported the job done; anything but one is a fault of the worker's."""
    submitted_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None
    finished_at: float | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

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

    async def streamed(self, count: int, timeout_seconds: float | None = None) -> Job:
        """Return once there are `count` streamed outputs, or the state is final. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while len(self.stream) < count and not self.state.is_final:
                await self._changed.wait()
        return self

    def report(self) -> dict[str, Any]:
        """The answer of `/status`: `id`, `status`, times in milliseconds, `output` or `error` where there is one."""
        report: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.taken_at is not None:
            report["delayTime"] = _milliseconds(self.submitted_at, self.taken_at)
            report["workerId"] = self.worker_id
        if self.taken_at is not None and self.finished_at is not None:
            report["executionTime"] = _milliseconds(self.taken_at, self.finished_at)
        if self.output is not None:
            report["output"] = self.output
        if self.error is not None:
            report["error"] = self.error
        return report


class JobQueue:
    """The jobs of one endpoint."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.pings: dict[str, deque[dict[str, str]]] = {}
        """Each worker's last heartbeats, oldest first, as their query parameters."""
        self._polls: Counter[str] = Counter()
        """The polls that each worker has open; a worker that ever polled has an entry."""
        self._forgotten: Counter[JobState] = Counter()
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._to_stop: dict[str, list[str]] = {}
        self._stop_asked = asyncio.Event()
        self._closed = False

    def submit(self, job_input: Any) -> Job:
        """Queue a job with this input."""
        self._forget_old_jobs()
        job = Job(id=str(uuid.uuid4()), input=job_input)
        self.jobs[job.id] = job
        self._waiting.append(job)
        self._arrived.set()
        return job

    async def wait_for_job(self, timeout_seconds: float) -> bool:
        """Return True as soon as a job waits, False after the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self._waiting and not self._closed:
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
        """Count a worker as ready for jobs while this lasts."""
        self._polls[worker_id] += 1
        try:
            yield
        finally:
            self._polls[worker_id] -= 1

    def workers(self) -> dict[str, int]:
        """How many workers there are, in the words of RunPod's `/health`. One that has never polled initializes."""
        running = {job.worker_id for job in self.jobs.values() if job.state is JobState.IN_PROGRESS}
        return {
            "idle": len(set(self._polls) - running),
            "initializing": len(set(self.pings) - set(self._polls)),
            "ready": sum(polls > 0 for polls in self._polls.values()),
            "running": len(running),
            "throttled": 0,
        }

    def add_output(self, job: Job, output: Any) -> None:
        """Record one streamed output; a finished job takes no more."""
        if not job.state.is_final:
            job.stream.append(output)
            job.changed()

    def finish(self, job: Job, *, output: Any, error: str | None) -> None:
        """Record a worker's result. A job that was cancelled meanwhile stays cancelled."""
        job.answers += 1
        if not job.state.is_final:
            job.output, job.error = output, error
            self._end(job, JobState.FAILED if error is not None else JobState.COMPLETED)

    def cancel(self, job: Job) -> None:
        """Cancel a job: a waiting one is never handed out, the worker of a running one is told to stop it."""
        if job.state is JobState.IN_QUEUE:
            self._waiting.remove(job)
        elif job.state is JobState.IN_PROGRESS and job.worker_id is not None:
            self._to_stop.setdefault(job.worker_id, []).append(job.id)
            self._stop_asked.set()
        if not job.state.is_final:
            self._end(job, JobState.CANCELLED)

    def purge(self) -> int:
        """Cancel every job that still waits; how many that were."""
        waiting = list(self._waiting)
        for job in waiting:
            self.cancel(job)
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
        return self._to_stop.pop(worker_id, [])

    def close(self) -> None:
        """Answer every waiting poll with nothing, so that the server can end."""
        self._closed = True
        self._arrived.set()
        self._stop_asked.set()

    def ping(self, worker_id: str, parameters: dict[str, str]) -> None:
        """Record a worker's heartbeat."""
        self.pings.setdefault(worker_id, deque(maxlen=100)).append(parameters)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        kept = Counter(job.state for job in self.jobs.values())
        return {state: kept[state] + self._forgotten[state] for state in JobState}

    def forget(self, job: Job) -> None:
        """Keep a finished job that nobody can ask for any more only in the counts."""
        if job.state.is_final and job.id in self.jobs:
            del self.jobs[job.id]
            self._forgotten[job.state] += 1

    def _end(self, job: Job, state: JobState) -> None:
        job.state, job.finished_at = state, time.monotonic()
        job.changed()

    def _forget_old_jobs(self) -> None:
        oldest = time.monotonic() - RETENTION_SECONDS
        while self.jobs:
            job = next(iter(self.jobs.values()))
            if job.finished_at is None or job.finished_at > oldest:
                return
            self.forget(job)


def _milliseconds(begin: float, end: float) -> int:
    return round((end - begin) * 1000)
