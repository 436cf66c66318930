"""Three workers under one queue: a burst is shared, and the simulation foresees it, as it does steady traffic."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet.engine_model import EngineModel
from benchmarks.fleet.outcome import Outcome, plot
from benchmarks.fleet.plan import Choice, plot_choices
from benchmarks.fleet.running import FleetError, run_fleet
from benchmarks.fleet.scaling import Endpoint, QueueDelay, RequestCount, Rule
from benchmarks.fleet.simulation import Simulation, Worker
from benchmarks.fleet.traffic import Arrival, read_traffic

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

    planned = plan_of(three, THREE, burst)
    assert planned.makespan == pytest.approx(three.makespan, rel=0.15)
    assert planned.gpu_seconds == pytest.approx(three.gpu_seconds, rel=0.15)
    assert statistics.mean(planned.waits()) == pytest.approx(statistics.mean(three.waits()), rel=0.15)

    plot({"three": three, "one": one}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.alone
@pytest.mark.parametrize(("rule", "load"), [(RequestCount(4), "steady:6:20"), (QueueDelay(1.5), "steady:5:20")])
async def test_plan_foresees_steady_traffic_from_no_worker_on(rule: Rule, load: str) -> None:
    endpoint = Endpoint(rule, least=0, most=3, idle_seconds=3.0, cold_start_seconds=2.0)
    traffic = read_traffic(load, tokens=TOKENS)
    run = await run_fleet(endpoint, traffic, interval=INTERVAL, environment={"MAX_RUNNING_REQUESTS": "4"})
    planned = plan_of(run, endpoint, traffic, streams=4)
    assert len(planned.workers) == len(run.workers) == 3
    assert planned.makespan == pytest.approx(run.makespan, rel=0.15)
    assert planned.gpu_seconds == pytest.approx(run.gpu_seconds, rel=0.15)
    assert statistics.mean(planned.firsts()) == pytest.approx(statistics.mean(run.firsts()), rel=0.15)
    # About a third of a second; a tick of the scaler is a tenth.
    assert statistics.mean(planned.waits()) == pytest.approx(statistics.mean(run.waits()), rel=0.15, abs=0.1)


def plan_of(run: Outcome, endpoint: Endpoint, traffic: list[Arrival], *, streams: int = STREAMS) -> Outcome:
    """The simulation of what was run, with cold starts as long as they were: they are longer on a busy machine."""
    starts = [life.ready - life.started for life in run.workers if life.ready]
    worker = Worker.taking(EngineModel.steady(1 / INTERVAL), streams)
    return Simulation(replace(endpoint, cold_start_seconds=statistics.mean(starts)), worker, traffic).outcome()


async def test_worker_that_cannot_start_ends_the_run_with_the_reason() -> None:
    with pytest.raises(FleetError, match="MAX_CONCURRENCY='many'"):
        await run_fleet(THREE, [Arrival(0.0, 1)], interval=INTERVAL, environment={"MAX_CONCURRENCY": "many"})


def test_choices_are_drawn(tmp_path: Path) -> None:
    outcome = Simulation(THREE, Worker(EngineModel.steady(50.0), STREAMS), [Arrival(0.0, TOKENS)]).outcome()
    rules = (RequestCount(9), QueueDelay(2))
    plot_choices([Choice(replace(THREE, rule=rule), outcome, 1.0, 2.0) for rule in rules], 10.0, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
