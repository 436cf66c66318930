"""What happened in the last minute, and how the engine is: for the log's line of each minute, `/health` and the page.

A serverless worker cannot be scraped: its log is where these are read.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from common import job_record, meters
from common.errors import type_and_place
from common.job_record import JobRecord, Outcome
from common.tasks import cancel

log = logging.getLogger("worker.figures")

MINUTE_SECONDS = 60.0
LOAD_SECONDS = 2.0  # for the engine to say its load, which it has at hand
LAG_SECONDS = 0.25  # between two measurements of the event loop's lag, which cost nothing at this pace
MAX_RECORDS = 30_000  # 500 jobs a second for a minute; beyond that, only the last ones count


@dataclass(frozen=True)
class Load:
    """What the engine says of itself; None where it does not.

    kv_usage: the share of the KV cache that is in use. accept_length: tokens a step with speculative decoding. waiting:
    requests inside the engine that do not run yet.
    """

    kv_usage: float | None = None
    accept_length: float | None = None
    waiting: int | None = None


AskLoad = Callable[[], Awaitable[Load]]


async def no_load() -> Load:
    """For a worker without an engine."""
    return Load()


_asked: list[AskLoad] = []


class RecentJobs:
    """The jobs that ended lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, JobRecord]] = deque(maxlen=MAX_RECORDS)

    def add(self, record: JobRecord) -> None:
        """Note the end of a job."""
        self._ended.append((self._clock(), record))

    def since(self, when: float) -> list[JobRecord]:
        """Those that have ended after that; they are forgotten after two minutes, as a minute's line may be late."""
        oldest = self._clock() - 2 * MINUTE_SECONDS
        while self._ended and self._ended[0][0] < oldest:
            self._ended.popleft()
        return [record for ended, record in self._ended if ended > when]


_recent = RecentJobs()
job_record.observers.append(_recent.add)


def figures_of(records: Sequence[JobRecord], seconds: float, load: Load) -> dict[str, Any]:
    """What the jobs that ended within so many seconds, and the engine's load, come to; None where it is not known."""
    outcomes = Counter(record.outcome for record in records)
    firsts = sorted(r.first_token_seconds for r in records if r.first_token_seconds is not None)
    output = [r.completion_tokens for r in records if r.completion_tokens is not None]
    prompts = [(r.prompt_tokens, r.cached_tokens) for r in records]
    told = [(prompt, cached) for prompt, cached in prompts if prompt is not None and cached is not None]
    tokens = sum(prompt for prompt, _ in told)
    return {
        "jobs_completed": outcomes[Outcome.COMPLETED],
        "jobs_failed": outcomes[Outcome.FAILED] + outcomes[Outcome.UNDELIVERED],
        "jobs_cancelled": outcomes[Outcome.CANCELLED],
        "first_token_p50_seconds": _rounded(quantile(firsts, 0.5)),
        "first_token_p95_seconds": _rounded(quantile(firsts, 0.95)),
        "output_tokens_per_second": _rounded(sum(output) / seconds) if output else None,
        "cached_share": _rounded(sum(cached for _, cached in told) / tokens) if tokens else None,
        "accept_length": _rounded(load.accept_length),
        "kv_usage": _rounded(load.kv_usage),
        "jobs_in_flight": round(meters.IN_FLIGHT.values[()]),
        "jobs_waiting": round(meters.WAITING.values[()]) + (load.waiting or 0),
    }


def quantile(ascending: Sequence[float], share: float) -> float | None:
    """The least of these numbers that is not below this share of them; None of no numbers."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def sentence(figures: Mapping[str, Any], seconds: float) -> str:
    """The figures for people, without what is not known."""
    known = {name: value for name, value in figures.items() if value is not None}
    words = {
        "first_token_p50_seconds": "first token p50 {:.2f} s",
        "first_token_p95_seconds": "p95 {:.2f} s",
        "output_tokens_per_second": "{:.1f} tokens/s",
        "cached_share": "{:.0%} of the input cached",
        "accept_length": "accept length {:.2f}",
        "kv_usage": "KV cache {:.0%}",
        "jobs_in_flight": "{} in flight",
        "jobs_waiting": "{} waiting",
    }
    jobs = f"{figures['jobs_completed']} jobs completed, {figures['jobs_failed']} failed"
    cancelled = f", {figures['jobs_cancelled']} cancelled" if figures["jobs_cancelled"] else ""
    rest = ", ".join(form.format(known[name]) for name, form in words.items() if name in known)
    return f"the last {seconds:.0f} s: {jobs}{cancelled}; {rest}"


def seconds_by_phase(phases: Mapping[str, float]) -> str:
    """`worker 0.2 s, imports 9.1 s, …`, without the phases that took no time."""
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items() if seconds >= 0.05)


async def figures_now() -> dict[str, Any]:
    """The figures of the last minute; the engine's load is among them while `minute_lines` knows whom to ask."""
    load = await _load(_asked[-1]) if _asked else Load()
    return figures_of(_recent.since(time.monotonic() - MINUTE_SECONDS), MINUTE_SECONDS, load)


def engine_status() -> dict[str, Any]:
    """How the engine is; None where it is not known.

    state, and since when; phase: what its start is at; capacity, and what limits it; jobs in flight and waiting.
    """
    since = meters.ENGINE_SINCE.values.get(())
    capacity = meters.CAPACITY.values.get(())
    return {
        "state": meters.only_label(meters.ENGINE_STATE),
        "since": None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
        "phase": meters.only_label(meters.ENGINE_PHASE),
        "capacity": None if capacity is None else round(capacity),
        "limit": meters.only_label(meters.CAPACITY_LIMIT),
        "in_flight": round(meters.IN_FLIGHT.values[()]),
        "waiting": round(meters.WAITING.values[()]),
    }


@asynccontextmanager
async def minute_lines(ask_load: AskLoad = no_load, *, seconds: float = MINUTE_SECONDS) -> AsyncGenerator[None, None]:
    """Within this context, log a line for each minute with traffic, and for what is left of one at the end."""
    teller = _Teller(ask_load)
    _asked.append(ask_load)
    telling = asyncio.create_task(teller.tell_each(seconds), name="telling each minute's figures")
    measuring = asyncio.create_task(measure_lag(), name="measuring the event loop's lag")
    try:
        yield
    finally:
        _asked.remove(ask_load)
        await cancel(telling, measuring)
        teller.tell(Load())


async def measure_lag(every_seconds: float = LAG_SECONDS) -> None:
    """Count, until cancelled, by how much later than asked the event loop wakes a task."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_seconds
        await asyncio.sleep(every_seconds)
        meters.LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due))


class _Teller:
    def __init__(self, ask_load: AskLoad) -> None:
        self._ask_load = ask_load
        self._told_at = time.monotonic()

    async def tell_each(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                self.tell(await _load(self._ask_load))
            except Exception as error:  # a line is not worth more than the next one
                log.error("the minute's figures could not be told: %s\n%s", *type_and_place(error))

    def tell(self, load: Load) -> None:
        """Log the figures since the last line, if there was any traffic."""
        now, since = time.monotonic(), self._told_at
        self._told_at = now
        records, seconds = _recent.since(since), max(now - since, 0.001)
        if not records and not meters.IN_FLIGHT.values[()]:
            return
        figures = figures_of(records, seconds, load)
        log.info("%s", sentence(figures, seconds), extra={"fields": {"seconds": round(seconds, 3), **figures}})


async def _load(ask_load: AskLoad) -> Load:
    """What the engine says; nothing if it does not, for whatever reason: it may be about to be restarted."""
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            return await ask_load()
    except Exception as error:
        log.debug("the engine does not tell its load: %s", type(error).__name__)
        return Load()
