"""What SGLang's schedulers say of themselves: `GET /v1/loads?include=core`.

Each scheduler (one a data-parallel rank) writes its figures into shared memory, and the server reads them from there at
next to no cost (SGLang 0.5.23, srt/managers/load_snapshot.py and srt/entrypoints/v1_loads.py). They are written at each
prefill, every 15 decode steps, every 50 ms while requests wait and none can run, and whenever the engine gets idle
(`Scheduler.publish_load_snapshot`). So they may be some hundred milliseconds old; `timestamp` says when they were
written. Requests that are in a prefill at that moment are counted neither as running nor as waiting.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

PATH = "/v1/loads?include=core"
CLOCK_SECONDS = 3600.0
# More than one scheduler can have: SGLang itself sets 4,096 at most (kv_cache_configurator.py).
UNBELIEVABLE_SLOTS = 65_536


class LoadsError(Exception):
    """The answer cannot be used; the text says why, without quoting it."""


@dataclass(frozen=True)
class RankLoad:
    """One scheduler's figures.

    running, waiting: requests. slots: `max_running_requests`. tokens: how many its KV cache holds (infinite if it does
    not say). used: the share of them in use, 0 to 1. written_at: seconds since the epoch; None if it does not say.
    """

    running: int
    waiting: int
    slots: int
    tokens: float
    used: float
    written_at: float | None


def parse_loads(answer: Any) -> list[RankLoad]:
    """The figures of every rank, from the JSON answer. Raises LoadsError; so it does before the first are written."""
    ranks = answer.get("loads") if isinstance(answer, dict) else None
    if not isinstance(ranks, list) or not ranks:
        raise LoadsError("it has no `loads`")
    return [_rank(rank) for rank in ranks]


def _rank(fields: Any) -> RankLoad:
    if not isinstance(fields, dict):
        raise LoadsError("one of its `loads` is not an object")
    written_at, now = fields.get("timestamp"), time.time()
    slots = int(_number(fields, "max_running_requests", least=1))
    if slots > UNBELIEVABLE_SLOTS:
        raise LoadsError(f"its `max_running_requests` is more than {UNBELIEVABLE_SLOTS:,}")
    return RankLoad(
        running=int(_number(fields, "num_running_reqs", least=0)),
        waiting=int(_number(fields, "num_waiting_reqs", least=0)),
        slots=slots,
        tokens=_number(fields, "max_total_num_tokens", least=1, default=math.inf),
        used=min(_number(fields, "token_usage", least=0, default=0.0), 1.0),
        # Both are on this machine: a time that is further away than this is not one of this clock.
        written_at=min(written_at, now)
        if isinstance(written_at, float) and abs(written_at - now) < CLOCK_SECONDS
        else None,
    )


def _number(fields: dict[str, Any], name: str, *, least: float, default: float | None = None) -> float:
    if name not in fields and default is not None:
        return default
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise LoadsError(f"its `{name}` is not a number of at least {least:g}")
    return float(value)
