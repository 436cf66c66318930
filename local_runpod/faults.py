"""Makes the platform slow, or makes it refuse calls, on demand: what workers must survive."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Faults:
    """How the worker's side of the API misbehaves. Everything can be changed while the app runs.

    latency_seconds: added to every call, like a network round trip.
    refusals: status codes for the next calls of a route, by route name (`job-take`, `job-stream`, …), used up from the
        front.
    stalls: how many seconds the next calls of a route are delayed before anything is done, by route name.
    nonsense: answers to the next takes, as JSON text, in place of jobs.
    is_away: whether every call is refused with 503.
    """

    latency_seconds: float = 0.0
    refusals: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    stalls: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    nonsense: list[str] = field(default_factory=list)
    is_away: bool = False

    async def apply(self, route: str) -> int | None:
        """Wait as long as this call must; return the status to refuse it with, or None to serve it."""
        stall = self.stalls[route].pop(0) if self.stalls[route] else 0.0
        if seconds := self.latency_seconds + stall:
            await asyncio.sleep(seconds)
        if self.is_away:
            return 503
        return self.refusals[route].pop(0) if self.refusals[route] else None
