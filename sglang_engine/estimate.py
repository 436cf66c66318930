"""From SGLang's figures to a number of jobs: how many the engine can run at once, and how many to hold in reserve.

- While no request waits inside SGLang: what its slots (`max_running_requests`) and its KV cache hold. How much of the
  cache a job takes is learned from the jobs that are running. As they are young at first, and small, the number at most
  doubles from one reading to the next.
- While requests wait there: what runs, plus the reserve. That is the steady state under a full queue: the reserve waits
  inside SGLang, and takes the place of a job that ends.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from sglang_engine.loads import RankLoad

# The KV cache that a job is thought to take before any has been seen: a short chat, its answer included. On an H100
# with GLM-4.7-Flash that makes 180 jobs at the start (185,000 tokens).
FIRST_JOB_TOKENS = 1024
# How full the KV cache may be planned. SGLang keeps some of it free for the tokens that running requests will need, and
# has to take requests back out of the batch when it runs out.
FULL = 0.95
# Jobs that are larger than expected count at once, smaller ones by this share each time.
FORGET = 0.2

# The reserve covers the jobs that end while the next are on their way from the platform: about this long, a round trip
# of a poll with the pauses around it. A sixteenth of what runs, and two jobs, are the least: jobs that began together
# end together, and with one in reserve it takes many rounds until they no longer do.
REFILL_SECONDS = 0.15
RESERVED_SHARE = 1 / 16
LEAST_RESERVE = 2

# Requests that have been under way for this long are in SGLang's figures: it has read and tokenised them.
SETTLED_SECONDS = 0.1
# A request of several prompts, or `n` answers, is several to SGLang. Below this ratio it is only a matter of timing.
SEVERAL = 1.5


class Limit(StrEnum):
    """What the number of jobs at once comes from."""

    UNKNOWN = "nothing yet"
    SLOTS = "max_running_requests"
    TOKENS = "the KV cache"
    WAITING = "requests waiting inside SGLang"
    CEILING = "MAX_CONCURRENCY"
    FALLBACK = "no figures from SGLang"


@dataclass(frozen=True)
class InFlight:
    """Our own requests when the engine's figures were written: all of them, and those that must be in the figures."""

    all: int
    settled: int


class Estimate:
    """From SGLang's figures to a number of jobs. No clock, no network."""

    def __init__(self) -> None:
        self.jobs = 1
        """How many it can run and hold in reserve, at once."""
        self.reserve = 1
        self.limit = Limit.UNKNOWN
        self.is_growing = False
        """Whether the number was held back because it may only double."""
        self.job_tokens: float | None = None
        """What a job takes of the KV cache; None until one has been seen."""
        # Of this reading and the one before: a job that has just ended, or that is on its way into the batch, is in one
        # figure and not yet in another.
        self._held: deque[float] = deque(maxlen=2)
        self._all: deque[int] = deque(maxlen=2)

    def read(self, ranks: list[RankLoad], in_flight: InFlight, *, ended_a_second: float) -> None:
        """Take in one reading. ended_a_second: how many of our requests ended, lately."""
        running, waiting = sum(rank.running for rank in ranks), sum(rank.waiting for rank in ranks)
        self._all.append(in_flight.all)
        of_a_job = (running + waiting) / max(1, *self._all)
        if of_a_job < SEVERAL:
            of_a_job = 1.0
        held = max(running, in_flight.settled * of_a_job - waiting, 0.0) / of_a_job
        self._held.append(held)
        held = max(self._held)
        if running:
            self._learn(sum(rank.used * rank.tokens for rank in ranks if rank.used), held)
        rooms = [self._room(rank, of_a_job) for rank in ranks]
        jobs = sum(room for room, _ in rooms)
        self.limit = max(rooms, key=lambda room: room[0])[1]
        if waiting:
            share = sum(rank.running for rank in ranks if rank.waiting) / running if running else 1.0
            others = sum(room for rank, (room, _) in zip(ranks, rooms, strict=True) if not rank.waiting)
            jobs, self.limit = held * share + others, Limit.WAITING
        elif max(rank.used for rank in ranks) < FULL:
            jobs = max(
                jobs, min(held, sum(rank.slots for rank in ranks) / of_a_job)
            )  # what runs has room, whatever size the jobs were thought to have
        first = sum(min(rank.slots, rank.tokens / FIRST_JOB_TOKENS) for rank in ranks) / of_a_job
        most = max(first, 2 * held, 1.0)
        self.is_growing = jobs > most
        runs = max(math.floor(min(jobs, most)), 1)
        self.reserve = min(runs, reserve_for(runs, ended_a_second=ended_a_second))
        self.jobs = runs + self.reserve

    @property
    def is_settled(self) -> bool:
        """Whether the number is known, and neither growing nor based on what a job is thought to take of the cache."""
        return not self.is_growing and (self.job_tokens is not None or self.limit is Limit.SLOTS)

    def _learn(self, used_tokens: float, held: float) -> None:
        seen = max(used_tokens, 1.0) / held
        if self.job_tokens is None or seen > self.job_tokens:
            self.job_tokens = seen
        else:
            self.job_tokens += FORGET * (seen - self.job_tokens)

    def _room(self, rank: RankLoad, of_a_job: float) -> tuple[float, Limit]:
        """How many jobs a rank can run, and which of its limits that is."""
        slots = rank.slots / of_a_job
        tokens = rank.tokens * FULL / (self.job_tokens or FIRST_JOB_TOKENS)
        return (slots, Limit.SLOTS) if slots <= tokens else (tokens, Limit.TOKENS)


def reserve_for(runs: int, *, ended_a_second: float = 0.0) -> int:
    """How many jobs to hold in reserve for an engine that runs so many."""
    return max(math.ceil(runs * RESERVED_SHARE), math.ceil(ended_a_second * REFILL_SECONDS), LEAST_RESERVE)
