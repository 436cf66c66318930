"""Three workers under one queue: a burst is shared, and the simulation of the same foresees it."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet.engine_model import EngineModel
from benchmarks.fleet.outcome import plot
from benchmarks.fleet.running import run_fleet
from benchmarks.fleet.scaling import Endpoint, RequestCount
from benchmarks.fleet.simulation import Simulation, Worker
from benchmarks.fleet.traffic import read_traffic

pytestmark = pytest.mark.anyio

STREAMS, TOKENS, INTERVAL = 8, 100, 0.02  # an engine that runs 8 jobs of 2 s at once
ENVIRONMENT = {"MAX_RUNNING_REQUESTS": str(STREAMS)}
THREE = Endpoint(RequestCount(32), least=1, most=3, idle_seconds=3.0, cold_start_seconds=4.0)


async def test_burst_is_shared_with_workers_that_come_later_and_the_plan_foresees_it(tmp_path: Path) -> None:
    burst = read_traffic("burst:96", tokens=TOKENS)
    three, one = await asyncio.gather(
        run_fleet(THREE, burst, interval=INTERVAL, environment=ENVIRONMENT),
        run_fleet(replace(THREE, most=1), burst, interval=INTERVAL, environment=ENVIRONMENT),
    )
    _, second, third = three.workers
    assert three.answered[second.name] >= 96 / 5
    assert three.answered[third.name] >= 96 / 5
    assert three.makespan <= 0.65 * one.makespan
    assert one.answered == {"worker-1": 96}
    assert one.makespan <= 96 / STREAMS * TOKENS * INTERVAL * 1.15, "its engine never ran dry"

    assert second.ready is not None
    assert third.ready is not None
    starts = (second.ready - second.started + third.ready - third.started) / 2  # longer on a busy machine
    worker = Worker.taking(EngineModel.steady(1 / INTERVAL), STREAMS)
    planned = Simulation(replace(THREE, cold_start_seconds=starts), worker, burst).outcome()
    assert planned.makespan == pytest.approx(three.makespan, rel=0.15)
    assert planned.gpu_seconds == pytest.approx(three.gpu_seconds, rel=0.15)
    assert statistics.mean(planned.waits()) == pytest.approx(statistics.mean(three.waits()), rel=0.15)

    plot({"three": three, "one": one}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
