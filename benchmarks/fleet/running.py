"""A fleet of real workers: `python handler.py` each, between one local RunPod and a paced engine of its own."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet.outcome import Answered, Outcome, WorkerLife
from benchmarks.fleet.scaling import Endpoint, State
from benchmarks.fleet.traffic import Arrival
from common.tasks import cancel
from embedded.environment import engine_environment
from local_runpod import Job, JobState, worker_environment
from scripts.worker_process import REPOSITORY, Platform, Worker, running_platform, start_worker

TICK_SECONDS = 0.1
# Processes that are started before the run, to wait for their cold start to be over: it is then as long as asked for,
# however busy this machine is.
SPARES = 8
START_SECONDS = 400.0  # of a real SGLang, on a busy machine
ANSWER_SECONDS = 600.0  # how long nothing may be answered, until the run is given up
PACED_ENGINE = f"{REPOSITORY / 'benchmarks' / 'paced_engine'}:{REPOSITORY}"


class FleetError(Exception):
    """The fleet did not answer; the text says which worker ended, or which job failed, and why."""


@dataclass(eq=False)
class _Member:
    """A worker of the fleet; `idle_since` in `time.monotonic()` seconds."""

    life: WorkerLife
    process: Worker
    warm: Path
    """The file for which its engine waits."""
    idle_since: float = field(default_factory=time.monotonic)
    stopping: asyncio.Task[int] | None = None

    @property
    def is_ready(self) -> bool:
        return "taking jobs" in self.process.log


class Fleet:
    """The workers of one endpoint, as many as its rule says."""

    def __init__(
        self, platform: Platform, endpoint: Endpoint, *, interval: float | None, environment: Mapping[str, str]
    ) -> None:
        """interval: seconds between two tokens of a paced engine's stream; None: the engines are real, on the CPU.

        environment: of every worker.
        """
        self._platform = platform
        self._endpoint = endpoint
        self._interval = interval
        self._environment = environment
        self._members: list[_Member] = []
        self._spares: list[tuple[Worker, Path]] = []
        self._began = time.monotonic()
        self._last_start = -math.inf
        self._spawned = 0

    async def run(self, traffic: Sequence[Arrival]) -> Outcome:
        """Have all jobs answered, and wait until the workers that the endpoint does not keep have gone.

        Begins when the endpoint's `least` workers are ready. Raises FleetError.
        """
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            self._folder = Path(folder)
            try:
                return await self._run(traffic)
            finally:
                await asyncio.gather(*(process.stop() for process in self._everyone()))

    async def _run(self, traffic: Sequence[Arrival]) -> Outcome:
        # A real engine has its own cold start.
        spares = 0 if self._interval is None else min(self._endpoint.most, SPARES)
        self._spares = [await self._spawn() for _ in range(spares)]
        for _ in range(self._endpoint.least):
            await self._start(cold_start_seconds=0.0)
        async with asyncio.timeout(START_SECONDS):
            while not all(member.is_ready for member in self._members) or not self._are_spares_there():
                self._look_for_ended(
                    [*(member.process for member in self._members), *(each for each, _ in self._spares)]
                )
                await asyncio.sleep(TICK_SECONDS)
        self._begin()
        scaling = asyncio.create_task(self._scale(), name="scaling the fleet")
        answering = asyncio.create_task(self._answer(traffic), name="answering the traffic")
        try:
            await asyncio.wait({scaling, answering}, return_when=asyncio.FIRST_COMPLETED)
            if scaling.done():
                scaling.result()
            jobs = await answering
            while len(self._present()) > self._endpoint.least:
                if scaling.done():
                    scaling.result()
                await asyncio.sleep(TICK_SECONDS)
            return Outcome(jobs, [member.life for member in self._members], self._now())
        finally:
            await cancel(scaling, answering)

    def _begin(self) -> None:
        self._began = time.monotonic()
        for member in self._members:
            member.life.started = member.life.ready = 0.0
            member.idle_since = self._began

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _present(self) -> list[_Member]:
        return [member for member in self._members if member.stopping is None]

    async def _start(self, *, cold_start_seconds: float) -> None:
        self._last_start = time.monotonic()
        process, warm = self._spares.pop(0) if self._spares else await self._spawn()
        self._members.append(_Member(WorkerLife(warm.name, self._now()), process, warm))
        asyncio.get_running_loop().call_later(cold_start_seconds, warm.touch)

    async def _spawn(self) -> tuple[Worker, Path]:
        """A worker's process, and the file that its engine waits for, which has the worker's name."""
        self._spawned += 1
        warm = self._folder / f"worker-{self._spawned}"
        variables = worker_environment(self._platform.base_url, worker_id=warm.name)
        if self._interval is None:
            variables = engine_environment(variables | {"PYTHONPATH": str(REPOSITORY)})
        else:
            variables |= {"PYTHONPATH": PACED_ENGINE, "PACED_ENGINE_READY_WHEN": str(warm)}
        return await start_worker(None, variables | dict(self._environment)), warm

    def _are_spares_there(self) -> bool:
        return all("sglang.launch_server" in process.log for process, _ in self._spares)

    async def _scale(self) -> None:
        """Follow the endpoint's rule; does not return. Raises FleetError if a worker ends by itself."""
        while True:
            self._look_at_members()
            present, state = self._present(), self._state()
            wanted = self._endpoint.wanted(state)
            for _ in range(wanted - len(present)):
                await self._start(cold_start_seconds=self._endpoint.cold_start_seconds)
            for member in self._idle()[: max(len(present) - wanted, 0)]:
                member.stopping = asyncio.create_task(member.process.stop())
                member.life.ended = self._now()
            await asyncio.sleep(TICK_SECONDS)

    def _look_at_members(self) -> None:
        busy = {job.worker_id for job in self._jobs(JobState.IN_PROGRESS)}
        for member in self._present():
            self._look_for_ended([member.process])
            if member.life.ready is None and member.is_ready:
                member.life.ready = self._now()
                member.idle_since = time.monotonic()
            if member.life.name in busy or member.life.ready is None:
                member.idle_since = time.monotonic()

    def _everyone(self) -> list[Worker]:
        return [member.process for member in self._members] + [process for process, _ in self._spares]

    def _look_for_ended(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            if worker.process.returncode is not None:
                raise FleetError(f"a worker ended by itself:\n{worker.log[-2000:].strip()}")

    def _idle(self) -> list[_Member]:
        """Those that have had no job for the endpoint's time, the newest first."""
        now = time.monotonic()
        idle = [member for member in self._present() if now - member.idle_since >= self._endpoint.idle_seconds]
        return idle[::-1]

    def _jobs(self, state: JobState) -> list[Job]:
        return [job for job in self._platform.queue.jobs.values() if job.state is state]

    def _state(self) -> State:
        queued, now = self._jobs(JobState.IN_QUEUE), time.monotonic()
        return State(
            queued=len(queued),
            in_progress=len(self._jobs(JobState.IN_PROGRESS)),
            oldest_wait=now - min((job.submitted_at for job in queued), default=now),
            workers=len(self._present()),
            since_last_start=now - self._last_start,
        )

    async def _answer(self, traffic: Sequence[Arrival]) -> list[Answered]:
        watches = []
        for arrival in traffic:
            if (pause := arrival.at - self._now()) > 0:
                await asyncio.sleep(pause)
            body = {
                "messages": [{"role": "user", "content": "Hello"}],
                "stream": True,
                "max_tokens": arrival.tokens,
                **({"ignore_eos": True} if self._interval is None else {"interval": self._interval}),
            }
            watches.append(asyncio.create_task(self._watch(self._platform.queue.submit(body), arrival)))
        try:
            return list(await asyncio.gather(*watches))
        finally:
            await cancel(*watches)

    async def _watch(self, job: Job, arrival: Arrival) -> Answered:
        with suppress(TimeoutError):
            await job.streamed(1, ANSWER_SECONDS)
        first = self._now()
        with suppress(TimeoutError):
            await job.finished(ANSWER_SECONDS)
        if job.state is not JobState.COMPLETED or job.taken_at is None or job.finished_at is None:
            raise FleetError(f"a job was not answered: {job.state}, {job.error}")
        return Answered(
            submitted=job.submitted_at - self._began,
            tokens=arrival.tokens,
            worker=job.worker_id or "",
            taken=job.taken_at - self._began,
            first=first,
            finished=job.finished_at - self._began,
        )


async def run_fleet(
    endpoint: Endpoint,
    traffic: Sequence[Arrival],
    *,
    interval: float | None,
    environment: Mapping[str, str],
    round_trip: float = 0.03,
) -> Outcome:
    """Run a fleet over a platform of its own. round_trip: of every call of a worker, in seconds. Raises FleetError."""
    async with running_platform() as platform:
        platform.faults.latency_seconds = round_trip
        return await Fleet(platform, endpoint, interval=interval, environment=environment).run(traffic)
