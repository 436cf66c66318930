"""How many jobs the engine can take at once: asked of SGLang, kept up to date, and doubted where it cannot be true.

A job that one worker has taken is lost to all others, so a worker takes what its engine can run, and a small reserve.
`sglang_engine.loads` is what SGLang says, `sglang_engine.estimate` what follows from it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from common import meters
from common.errors import UnavailableError
from common.settings import Concurrency
from common.tasks import cancel, reason_of_end
from sglang_engine.estimate import Estimate, InFlight, Limit
from sglang_engine.loads import PATH, LoadsError, RankLoad, parse_loads
from sglang_engine.supervisor import Supervisor

log = logging.getLogger("worker.capacity")

# What a worker takes if its engine does not say what it can run.
FALLBACK_JOBS = 300

# How often the engine is asked while jobs are in flight; and while the number is still doubling.
ASK_SECONDS = 0.5
ASK_SOON_SECONDS = 0.1
ANSWER_SECONDS = 5.0  # SGLang's server answers late while it reads long prompts, never this late

# A request that has been under way for this long is in SGLang's figures: it has been read and tokenised.
SETTLED_SECONDS = 0.1

# SGLang's figures are zeros until its first batch: how long a warm engine is asked again for others.
FIRST_FIGURES_SECONDS = 2.0
# How long the figures may be missing or stand still, and how long they may be impossible, until the engine is no longer
# asked. A server that reads long prompts answers late, and then again.
SILENCE_SECONDS = 30.0
DOUBT_SECONDS = 10.0
# An engine that has sent something in this time is at work.
AT_WORK_SECONDS = 5.0
# Answers that asking again will not change: the route is not there, or closed.
FINAL_STATUSES = frozenset({401, 403, 404, 405, 501})

SAY_AGAIN_SECONDS = 60.0
# How quickly requests end is counted over this many readings, and this long at least: they often end together.
RATE_READINGS = 5
RATE_SECONDS = 1.0


@dataclass(frozen=True)
class Reading:
    """What decides whether SGLang's figures are believed.

    written_at: seconds since the epoch. is_at_work: whether the engine has just sent something. is_idle: whether they
    say that nothing runs and nothing waits although some of our requests must be there, or that nothing runs and more
    waits than we have sent.
    """

    written_at: float
    is_at_work: bool
    is_idle: bool


class Capacity:
    """How many jobs the engine can take at once.

    `at_once` is the number to go by, `limit` what it comes from, `reserve` how many of them are beyond what runs, and
    `ranks` what SGLang said last.
    """

    def __init__(self, client: httpx.AsyncClient, supervisor: Supervisor, *, most: int | None = None) -> None:
        """client: reaches the engine. most: a ceiling, from MAX_CONCURRENCY=auto:N."""
        self.at_once = 1
        self.limit = Limit.UNKNOWN
        self.ranks: list[RankLoad] = []
        self._client = client
        self._supervisor = supervisor
        self._most = most or math.inf
        self._estimate = Estimate()
        self._doubt = Doubt()
        self._ended: deque[tuple[float, int]] = deque(maxlen=RATE_READINGS)
        self._changed = asyncio.Event()
        self._has_warned = False
        self._told_at = self._told_full_at = -math.inf

    @property
    def reserve(self) -> int:
        """How many jobs may wait inside SGLang, so that its batch does not run dry while new ones are on their way."""
        return 0 if self.limit is Limit.FALLBACK else self._estimate.reserve

    @property
    def is_settled(self) -> bool:
        """Whether the number is what the engine can take, and not only what it is filled with to begin with."""
        return self.limit is Limit.FALLBACK or self._estimate.is_settled

    async def wait_until_above(self, jobs: int) -> None:
        """Return once more than this many jobs may be in flight."""
        while self.at_once <= jobs:
            await self._changed.wait()

    @classmethod
    @asynccontextmanager
    async def of(
        cls, client: httpx.AsyncClient, supervisor: Supervisor, concurrency: Concurrency
    ) -> AsyncGenerator[Capacity | None, None]:
        """Ask a warm engine, then keep the number up to date within this context; None if the number is fixed."""
        if not concurrency.is_auto:
            yield None
            return
        capacity = cls(client, supervisor, most=concurrency.most)
        async with capacity.kept():
            yield capacity

    @asynccontextmanager
    async def kept(self) -> AsyncGenerator[None, None]:
        """The same for one that exists: ask the warm engine, and again whenever it has requests."""
        await self._ask_new_engine()
        keeping = asyncio.create_task(self._keep(), name="asking the engine for its load")
        keeping.add_done_callback(self._keeping_ended)
        try:
            yield
        finally:
            await cancel(keeping)

    def _keeping_ended(self, keeping: asyncio.Task[None]) -> None:
        if not keeping.cancelled():
            self._fall_back(reason_of_end(keeping, keeping.get_name()))

    async def _keep(self) -> None:
        supervisor, life = self._supervisor, self._supervisor.lives
        while True:
            await supervisor.wait_for_request()
            await asyncio.sleep(ASK_SOON_SECONDS)  # figures that are written from now on can have the request in them
            while supervisor.in_flight and supervisor.lives == life:
                await self._ask()
                is_filling = self._estimate.is_growing and supervisor.in_flight >= self.at_once // 2
                await asyncio.sleep(ASK_SOON_SECONDS if is_filling else ASK_SECONDS)
            try:
                await supervisor.wait_until_ready()
            except UnavailableError:  # it is over: whoever owns this task ends it
                await asyncio.Event().wait()
            if supervisor.lives == life:
                await self._ask()  # it is idle, and has room again
            else:
                life = supervisor.lives
                await self._ask_new_engine()

    async def _ask_new_engine(self) -> None:
        """Ask until there are figures, for a short time; then there is a number, whatever the engine says."""
        self._estimate, self._doubt, self.limit = Estimate(), Doubt(), Limit.UNKNOWN
        give_up_at = time.monotonic() + FIRST_FIGURES_SECONDS
        life = self._supervisor.lives
        while True:
            await self._ask()
            if self.limit is not Limit.UNKNOWN or self._supervisor.lives != life:
                return
            if time.monotonic() >= give_up_at:
                return self._fall_back(self._doubt.reason)
            await asyncio.sleep(ASK_SOON_SECONDS)

    async def _ask(self) -> None:
        if self.limit is Limit.FALLBACK:
            return
        try:
            self._read(parse_loads(await self._answer()))
        except LoadsError as error:
            self._doubt.rises(str(error), time.monotonic())
        if self._doubt.is_certain:
            self._fall_back(self._doubt.reason)

    async def _answer(self) -> Any:
        """The JSON answer. Raises LoadsError."""
        try:
            answer = await self._client.get(PATH, timeout=ANSWER_SECONDS)
        except httpx.HTTPError as error:
            raise LoadsError(f"no answer ({type(error).__name__})") from error
        if answer.status_code in FINAL_STATUSES:
            self._doubt.is_certain = True
        if answer.status_code != httpx.codes.OK:
            raise LoadsError(f"it answers {answer.status_code}")
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise LoadsError("its answer is not JSON") from None

    def _read(self, ranks: list[RankLoad]) -> None:
        self.ranks = ranks
        supervisor, now = self._supervisor, time.monotonic()
        written_at = min((rank.written_at for rank in ranks if rank.written_at is not None), default=time.time())
        age_seconds, waiting = time.time() - written_at, sum(rank.waiting for rank in ranks)
        reading = Reading(
            written_at,
            is_at_work=now - supervisor.last_progress < AT_WORK_SECONDS,
            is_idle=not any(rank.running for rank in ranks)
            and (
                waiting > supervisor.in_flight
                or (not waiting and supervisor.begun_before(now - age_seconds - AT_WORK_SECONDS) > 0)
            ),
        )
        self._doubt.weighs(reading, now)
        in_flight = InFlight(
            all=supervisor.in_flight, settled=supervisor.begun_before(now - age_seconds - SETTLED_SECONDS)
        )
        self._ended.append((now, supervisor.requests_ended))
        self._estimate.read(ranks, in_flight, ended_a_second=self._ended_a_second())
        self.limit = Limit.CEILING if self._estimate.jobs > self._most else self._estimate.limit
        self._set(int(min(self._estimate.jobs, self._most)))
        self._tell(ranks)

    def _ended_a_second(self) -> float:
        (began, before), (now, ended) = self._ended[0], self._ended[-1]
        return (ended - before) / max(now - began, RATE_SECONDS)

    def _set(self, at_once: int) -> None:
        is_more, self.at_once = at_once > self.at_once, at_once
        meters.CAPACITY.set(at_once)
        meters.set_one(meters.CAPACITY_LIMIT, self.limit.name.lower(), (limit.name.lower() for limit in Limit))
        if is_more:
            self._changed.set()
            self._changed = asyncio.Event()

    def _fall_back(self, reason: str) -> None:
        """Go by a guess for as long as this engine lives."""
        self.limit, self.ranks = Limit.FALLBACK, []
        self._set(int(min(FALLBACK_JOBS, self._most)))
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the engine does not say what it can run (GET /v1/loads: %s): taking up to %d jobs at once; "
                "MAX_CONCURRENCY=N sets another number",
                reason,
                self.at_once,
            )

    def _tell(self, ranks: list[RankLoad]) -> None:
        """Log the number once, and now and then that it has been reached."""
        now = time.monotonic()
        if self._told_at == -math.inf:
            self._told_at = now
            log.info(
                "taking up to %d jobs at once to begin with, %d of them in reserve: SGLang says that it runs %d "
                "requests and that its KV cache holds %.0f tokens (GET /v1/loads); what limits it is %s",
                self.at_once,
                self.reserve,
                sum(rank.slots for rank in ranks),
                sum(rank.tokens for rank in ranks),
                self.limit,
            )
        is_full = self._supervisor.in_flight >= self.at_once and not self._estimate.is_growing
        if is_full and now - self._told_full_at >= SAY_AGAIN_SECONDS:
            self._told_full_at = now
            log.info(
                "the engine is full: %d requests run and %d wait, %.0f %% of the KV cache is used; no more jobs are "
                "taken until there is room (this is said once a minute at most)",
                sum(rank.running for rank in ranks),
                sum(rank.waiting for rank in ranks),
                100 * max(rank.used for rank in ranks),
            )


class Doubt:
    """Whether the figures can be believed: they are there, they move, and something runs while we get answers.

    Times are `time.monotonic()` seconds, but for `written_at`.
    """

    def __init__(self) -> None:
        self.is_certain = False
        """Whether there is no point in asking again."""
        self.reason = ""
        self._since: float | None = None
        self._written_at: float | None = None
        self._moved_at = 0.0

    def rises(self, reason: str, now: float, *, after_seconds: float = SILENCE_SECONDS) -> None:
        """Note a reading that cannot be used or believed; it is certain once there were no others for so long."""
        self.reason = reason
        self._since = now if self._since is None else self._since
        self.is_certain |= now - self._since >= after_seconds

    def weighs(self, reading: Reading, now: float) -> None:
        """Judge a reading that can be used."""
        if reading.written_at != self._written_at or not reading.is_at_work:
            self._written_at, self._moved_at = reading.written_at, now
        if now - self._moved_at >= SILENCE_SECONDS:
            self.reason, self.is_certain = f"its figures have not changed for {SILENCE_SECONDS:g} s of work", True
        elif reading.is_at_work and reading.is_idle:
            self.rises("it says that nothing runs, and yet requests are answered", now, after_seconds=DOUBT_SECONDS)
        else:
            self._since = None
