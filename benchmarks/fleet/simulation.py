"""A fleet in SimPy: the same rules, without the workers, so that days pass in seconds.

A worker takes what it can run and its reserve, in the order in which workers asked; a job that cannot run yet waits
inside it. How long a job takes is settled when it begins, by how many run then. Nothing fails here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import simpy

from benchmarks.fleet.engine_model import EngineModel
from benchmarks.fleet.outcome import Answered, Outcome, WorkerLife
from benchmarks.fleet.scaling import Endpoint, State
from benchmarks.fleet.traffic import Arrival
from sglang_engine.estimate import reserve_for

SHORTEST_TICK_SECONDS = 0.1
SHORT_TICKS = 2000  # in the time that the traffic takes


@dataclass(frozen=True)
class Worker:
    """What every worker is. slots: what its engine runs at once. round_trip: of a call to the platform, in seconds."""

    engine: EngineModel
    slots: int
    reserve: int = 2
    round_trip: float = 0.03

    @classmethod
    def taking(cls, engine: EngineModel, slots: int, round_trip: float = 0.03) -> Worker:
        """One that holds in reserve what a worker does."""
        return cls(engine, slots, min(slots, reserve_for(slots)), round_trip)


def _tick_seconds(endpoint: Endpoint, traffic: Sequence[Arrival]) -> float:
    """How often the endpoint looks at its rule.

    As often as `running` does where the traffic is short; on days of it, often enough for the endpoint's own times.
    """
    enough = min(endpoint.cold_start_seconds, endpoint.idle_seconds, 4.0) / 4
    return max(min(enough, traffic[-1].at / SHORT_TICKS), SHORTEST_TICK_SECONDS)


@dataclass(eq=False)
class _Member:
    life: WorkerLife
    running: int = 0
    inside: deque[Answered] = field(default_factory=deque)
    coming: int = 0
    """Jobs that it has taken and that are on their way to it."""
    asks: bool = False
    """Whether it has a poll open."""
    idle_since: float = 0.0

    @property
    def jobs(self) -> int:
        return self.running + len(self.inside) + self.coming


class Simulation:
    """One run. `outcome` simulates it to its end."""

    def __init__(self, endpoint: Endpoint, worker: Worker, traffic: Sequence[Arrival]) -> None:
        self._endpoint = endpoint
        self._worker = worker
        self._traffic = traffic
        self._env = simpy.Environment()
        self._queue: deque[Answered] = deque()
        self._polls: deque[_Member] = deque()
        self._members: list[_Member] = []
        self._present: dict[_Member, None] = {}
        self._jobs: list[Answered] = []
        self._finished = 0
        self._last_start = -math.inf
        self._tick = _tick_seconds(endpoint, traffic)

    def outcome(self) -> Outcome:
        """What became of the jobs, and what the workers cost, until those that are not kept have gone."""
        for _ in range(self._endpoint.least):
            self._start(0.0)
        self._env.process(self._arrive())
        self._env.run(until=self._env.process(self._scale()))
        return Outcome(self._jobs, [member.life for member in self._members], self._env.now)

    def _arrive(self) -> Any:
        for arrival in self._traffic:
            if arrival.at > self._env.now:
                yield self._env.timeout(arrival.at - self._env.now)
            job = Answered(self._env.now, arrival.tokens)
            self._jobs.append(job)
            self._queue.append(job)
            self._hand_out()

    def _scale(self) -> Any:
        while True:
            wanted = self._endpoint.wanted(self._state())
            for _ in range(wanted - len(self._present)):
                self._start(self._endpoint.cold_start_seconds)
            self._stop_idle(len(self._present) - wanted)
            is_over = self._finished == len(self._traffic) and len(self._present) <= self._endpoint.least
            if is_over:
                return
            yield self._env.timeout(self._tick)

    def _state(self) -> State:
        now = self._env.now
        return State(
            queued=len(self._queue),
            in_progress=len(self._jobs) - len(self._queue) - self._finished,
            oldest_wait=now - self._queue[0].submitted if self._queue else 0.0,
            workers=len(self._present),
            since_last_start=now - self._last_start,
        )

    def _start(self, cold_start_seconds: float) -> None:
        self._last_start = self._env.now
        member = _Member(WorkerLife(f"worker-{len(self._members) + 1}", self._env.now))
        self._members.append(member)
        self._present[member] = None
        self._after(cold_start_seconds, partial(self._get_ready, member))

    def _stop_idle(self, too_many: int) -> None:
        if too_many <= 0:
            return
        before = self._env.now - self._endpoint.idle_seconds
        idle = [
            member
            for member in reversed(self._present)
            if member.life.ready is not None and not member.jobs and member.idle_since <= before
        ]
        for member in idle[:too_many]:
            member.life.ended = self._env.now
            member.asks = False
            del self._present[member]

    def _get_ready(self, member: _Member) -> None:
        member.life.ready = member.idle_since = self._env.now
        self._ask(member)

    def _ask(self, member: _Member) -> None:
        """Open a poll, if there is room and none is open."""
        if member.asks or member.jobs >= self._worker.slots + self._worker.reserve:
            return
        member.asks = True
        self._polls.append(member)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._polls:
            member = self._polls.popleft()
            if not member.asks:
                continue
            member.asks = False
            room = self._worker.slots + self._worker.reserve - member.jobs
            taken = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
            for job in taken:
                job.worker, job.taken = member.life.name, self._env.now
            member.coming += len(taken)
            self._after(self._worker.round_trip / 2, partial(self._receive, member, taken))

    def _receive(self, member: _Member, taken: list[Answered]) -> None:
        member.coming -= len(taken)
        member.inside.extend(taken)
        self._begin_next(member)
        self._after(self._worker.round_trip / 2, partial(self._ask, member))

    def _begin_next(self, member: _Member) -> None:
        while member.inside and member.running < self._worker.slots:
            job, engine = member.inside.popleft(), self._worker.engine
            member.running += 1
            first, rate = engine.first(member.running), engine.rate(member.running)
            job.first = self._env.now + first + self._worker.round_trip / 2
            self._after(first + job.tokens / rate, partial(self._end, member, job))

    def _end(self, member: _Member, job: Answered) -> None:
        job.finished = self._env.now + self._worker.round_trip / 2
        self._finished += 1
        member.running -= 1
        self._begin_next(member)
        if not member.jobs:
            member.idle_since = self._env.now
        if not member.asks:
            self._after(self._worker.round_trip / 2, partial(self._ask, member))

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._env.timeout(seconds).callbacks.append(lambda _: call())
