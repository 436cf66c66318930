"""What SGLang says of its load: figures that can be used, and those that are refused."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from sglang_engine.loads import LoadsError, parse_loads

# An answer of SGLang 0.5.23 (`/v1/loads?include=core`), shortened.
RANK = {
    "dp_rank": 0,
    "num_running_reqs": 3,
    "num_waiting_reqs": 2,
    "num_used_tokens": 1200,
    "max_total_num_tokens": 2000,
    "max_running_requests": 8,
    "token_usage": 0.6,
    "decode_moments": None,
}


def answer(**changed: Any) -> dict[str, Any]:
    return {"timestamp": "2026-11-25T03:00:00+00:00", "loads": [RANK | changed]}


def test_figures_of_every_rank_are_read() -> None:
    now = time.time()
    first, second = parse_loads({"loads": [RANK | {"timestamp": now - 1}, RANK | {"num_running_reqs": 7}]})
    assert (first.running, first.waiting, first.slots, first.tokens, first.used) == (3, 2, 8, 2000, 0.6)
    assert first.written_at == now - 1
    assert (second.running, second.written_at) == (7, None)


@pytest.mark.parametrize("when", [0.0, 12.5, "2026-11-25T03:00:00+00:00", None, math.nan])
def test_time_of_another_clock_is_no_time(when: Any) -> None:
    assert parse_loads(answer(timestamp=when))[0].written_at is None


def test_time_in_the_future_is_now() -> None:
    [rank] = parse_loads(answer(timestamp=time.time() + 60))
    assert rank.written_at is not None
    assert rank.written_at <= time.time()


def test_cache_that_is_not_told_holds_anything() -> None:
    rank = {name: value for name, value in RANK.items() if name not in ("max_total_num_tokens", "token_usage")}
    [load] = parse_loads({"loads": [rank]})
    assert (load.tokens, load.used) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (None, "it has no `loads`"),
        ([], "it has no `loads`"),
        ({"loads": []}, "it has no `loads`"),
        ({"loads": {}}, "it has no `loads`"),
        ({"loads": [5]}, "one of its `loads` is not an object"),
        (answer(max_running_requests=0), "its `max_running_requests` is not a number of at least 1"),  # before a batch
        (answer(max_running_requests=None), "its `max_running_requests` is not a number of at least 1"),
        (answer(max_running_requests="8"), "its `max_running_requests` is not a number of at least 1"),
        (answer(max_running_requests=10**9), "its `max_running_requests` is more than 65,536"),
        (answer(max_running_requests=True), "its `max_running_requests` is not a number of at least 1"),
        (answer(max_total_num_tokens=-5), "its `max_total_num_tokens` is not a number of at least 1"),
        (answer(num_running_reqs=-1), "its `num_running_reqs` is not a number of at least 0"),
        (answer(num_waiting_reqs=math.inf), "its `num_waiting_reqs` is not a number of at least 0"),
        (answer(token_usage=math.nan), "its `token_usage` is not a number of at least 0"),
    ],
)
def test_figures_that_cannot_be_are_refused(wrong: Any, reason: str) -> None:
    with pytest.raises(LoadsError, match=f"^{reason}$"):
        parse_loads(wrong)
