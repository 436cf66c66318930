"""A loss of an order of magnitude in the worker's speed fails here; finer than that is what scripts/bench is for."""

from __future__ import annotations

import pytest

from benchmarks.measure import MeasurementError, directly, load, running_worker

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

STREAMS, EVENTS = 300, 100
ROUND_TRIP_SECONDS = 0.03

# Ten times what docs/performance.md has for 300 streams.
MOST_CPU_MS_A_THOUSAND = 340
MOST_FIRST_P95_SECONDS = 3.1


async def test_hundreds_of_streams_are_no_load() -> None:
    async with running_worker(("handler",), ROUND_TRIP_SECONDS) as worker:
        direct = await directly(worker.engine_url, STREAMS, EVENTS)
        result = await load(worker, STREAMS, EVENTS)
    assert result.events == direct.events == STREAMS * EVENTS
    assert result.events_a_second > direct.events_a_second / 10
    assert result.cpu_ms_a_thousand < MOST_CPU_MS_A_THOUSAND
    assert result.first_p95 < MOST_FIRST_P95_SECONDS


async def test_lone_stream_waits_for_the_network_alone() -> None:
    async with running_worker(("handler",), ROUND_TRIP_SECONDS) as worker:
        result = await load(worker, 1, EVENTS)
        assert result.first_median < 10 * ROUND_TRIP_SECONDS
        assert result.job_median < 10 * EVENTS * 0.01
        assert worker.ready_to_take_seconds < 1.0


async def test_worker_that_does_not_work_is_no_measurement() -> None:
    with pytest.raises(MeasurementError, match=r"^json.tool --no-such-flag answered no job"):
        async with running_worker(("json.tool", "--no-such-flag"), 0.0):
            pass
