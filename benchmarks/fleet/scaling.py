"""How many workers an endpoint should have: RunPod's two rules, and its other settings.

https://docs.runpod.io/serverless/endpoints/endpoint-configurations, "Auto-scaling type". RunPod does not say how many
workers it adds at a time when jobs wait too long; here it is one, and the next one only when the queue has been too
slow for as long again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class State:
    """What a rule sees. Times in seconds; `workers` includes those that are starting."""

    queued: int
    in_progress: int
    oldest_wait: float
    workers: int
    since_last_start: float


class Rule(Protocol):
    """How many workers there should be."""

    def wanted(self, state: State) -> int:
        """The number, before the endpoint's bounds."""


@dataclass(frozen=True)
class QueueDelay:
    """One more worker when a job has waited longer than this. Workers go by being idle."""

    seconds: float = 4.0

    def wanted(self, state: State) -> int:
        """See Rule."""
        if state.oldest_wait > self.seconds and (state.since_last_start >= self.seconds or not state.workers):
            return state.workers + 1
        return state.workers if state.queued + state.in_progress else 0

    def __str__(self) -> str:
        """As on the command line."""
        return f"delay:{self.seconds:g}"


@dataclass(frozen=True)
class RequestCount:
    """A worker for each so many jobs, waiting or running."""

    jobs: int = 4

    def wanted(self, state: State) -> int:
        """See Rule."""
        return math.ceil((state.queued + state.in_progress) / self.jobs)

    def __str__(self) -> str:
        """As on the command line."""
        return f"count:{self.jobs}"


def read_rule(text: str) -> Rule:
    """`delay:SECONDS` or `count:JOBS`. Raises ValueError."""
    kind, _, number = text.partition(":")
    if kind == "delay" and 0 <= (seconds := float(number)) < math.inf:
        return QueueDelay(seconds)
    if kind == "count" and (jobs := int(number)) >= 1:
        return RequestCount(jobs)
    raise ValueError(f"{text}: expected delay:SECONDS or count:JOBS")


@dataclass(frozen=True)
class Endpoint:
    """An endpoint's settings. Times in seconds.

    least, most: workers. idle_seconds: how long a worker stays without a job. cold_start_seconds: from the decision to
    start a worker to its first poll.
    """

    rule: Rule
    least: int = 0
    most: int = 3
    idle_seconds: float = 5.0
    cold_start_seconds: float = 4.0

    def __post_init__(self) -> None:
        """Raises ValueError for bounds that exclude each other."""
        if self.least > self.most:
            raise ValueError(f"at least {self.least} workers and at most {self.most} cannot both be")

    def wanted(self, state: State) -> int:
        """How many workers there should be. One starts for the first job, whatever the rule says."""
        floor = max(self.least, 1 if state.queued else 0)
        return min(max(self.rule.wanted(state), floor), self.most)
