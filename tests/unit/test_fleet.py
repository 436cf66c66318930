"""Fleets on paper: the traffic, RunPod's rules, the engine's speed, and the simulation. tests/worker has a real one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet.__main__ import main as fleet_main
from benchmarks.fleet.engine_model import EngineModel, EngineModelError
from benchmarks.fleet.outcome import Outcome
from benchmarks.fleet.plan import Choice, advice
from benchmarks.fleet.plan import main as plan_main
from benchmarks.fleet.scaling import Endpoint, QueueDelay, RequestCount, Rule, State, read_rule
from benchmarks.fleet.simulation import Simulation, Worker
from benchmarks.fleet.traffic import Arrival, TrafficError, read_traffic
from benchmarks.tables import percentile_95
from scripts.worker_process import REPOSITORY

PACED = EngineModel.steady(50.0)


def simulated(endpoint: Endpoint, traffic: list[Arrival], *, slots: int = 8, reserve: int = 1) -> Outcome:
    return Simulation(endpoint, Worker(PACED, slots, reserve), traffic).outcome()


def test_burst_comes_at_once_and_a_trace_in_order(tmp_path: Path) -> None:
    assert read_traffic("burst:3", tokens=7) == [Arrival(0.0, 7)] * 3
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,tokens\n2.5,40\n0,\n")
    assert read_traffic(str(trace), tokens=7) == [Arrival(0.0, 7), Arrival(2.5, 40)]


def test_steady_traffic_has_its_rate_and_days_have_a_noon() -> None:
    assert len(read_traffic("steady:10:1000", tokens=1)) == pytest.approx(10_000, rel=0.05)
    hours = [int(arrival.at // 3600) for arrival in read_traffic("days:0.2:1", tokens=1)]
    assert hours.count(12) == pytest.approx(0.2 * 3600, rel=0.2)
    assert hours.count(0) < hours.count(12) / 4


@pytest.mark.parametrize(
    "text", ["", "burst", "burst:x", "burst:0", "steady:0:5", "steady:1", "steady:1:inf", "days:-1:1", "no/such.csv"]
)
def test_traffic_that_is_not_understood_says_what_is_accepted(text: str) -> None:
    with pytest.raises(TrafficError, match=r"expected burst:JOBS|there are no jobs"):
        read_traffic(text, tokens=1)


@pytest.mark.parametrize("row", ["x,5", "-1,5", "1,0", "inf,1", ",1"])
def test_line_of_a_trace_that_is_wrong_is_named(row: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"seconds,tokens\n0,1\n{row}\n")
    with pytest.raises(TrafficError, match="line 3"):
        read_traffic(str(trace), tokens=1)


@pytest.mark.parametrize("text", ["burst:10000001", "steady:1:1e9", "days:200:1"])
def test_more_jobs_than_fit_into_memory_are_refused(text: str) -> None:
    with pytest.raises(TrafficError, match="more than 10,000,000 jobs"):
        read_traffic(text, tokens=1)


WRONG = [
    ("--most 0", "expected a whole number of at least 1"),
    ("--least 5 --most 3", "at least 5 workers and at most 3"),
    ("--tokens 0", "expected a whole number of at least 1"),
    ("--tokens -3", "expected a whole number of at least 1"),
    ("--streams 0", "expected a whole number of at least 1"),
    ("--cold-start -1", "expected a number of at least 0"),
    ("--idle nan", "expected a number of at least 0"),
    ("--plot /no/such/folder/x.png", "in a folder that is there"),
    ("--plot x.jpg", "expected a name with .png"),
]


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        *((fleet_main, *wrong) for wrong in WRONG),
        *((plan_main, *wrong) for wrong in WRONG),
        (fleet_main, "--seconds 0", "expected a number above 0"),
        (fleet_main, "--rule cpu:3", "expected delay:SECONDS or count:JOBS"),
        (plan_main, "--rate 0", "expected a number above 0"),
        (plan_main, "--price -1", "expected a number of at least 0"),
        (plan_main, "--engine no/such.json", "it cannot be read (FileNotFoundError)"),
        (plan_main, "--rules count:0", "expected delay:SECONDS or count:JOBS"),
    ],
)
def test_argument_that_makes_no_sense_ends_with_2_before_anything_runs(
    program: Callable[[], int],
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "burst:4", *words.split()])
    try:
        code: Any = program()
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert said in captured.err


def state(**changed: Any) -> State:
    return State(
        **({"queued": 0, "in_progress": 0, "oldest_wait": 0.0, "workers": 1, "since_last_start": 60.0} | changed)
    )


@pytest.mark.parametrize(
    ("rule", "seen", "wanted"),
    [
        (RequestCount(32), state(queued=96), 3),
        (RequestCount(32), state(queued=60, in_progress=5), 3),
        (RequestCount(32), state(), 0),
        (QueueDelay(4), state(queued=9, oldest_wait=3.9), 1),
        (QueueDelay(4), state(queued=9, oldest_wait=4.1), 2),
        (QueueDelay(4), state(queued=9, oldest_wait=8.0, workers=2, since_last_start=2.0), 2),
        (QueueDelay(4), state(in_progress=1, workers=3), 3),
        (QueueDelay(4), state(workers=3), 0),
    ],
)
def test_rules_are_runpod_s(rule: Rule, seen: State, wanted: int) -> None:
    assert rule.wanted(seen) == wanted


def test_endpoint_keeps_its_bounds_and_starts_a_worker_for_the_first_job() -> None:
    endpoint = Endpoint(QueueDelay(4), least=0, most=3)
    assert endpoint.wanted(state(queued=1, workers=0)) == 1
    assert endpoint.wanted(state(queued=9, oldest_wait=99.0, workers=3)) == 3
    assert Endpoint(RequestCount(1), least=2).wanted(state()) == 2


@pytest.mark.parametrize("text", ["count:0", "count:x", "delay:-1", "delay:nan", "delay", "cpu:5"])
def test_rule_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_rule(text)


def test_engine_model_is_what_bench_wrote_and_even_in_between(tmp_path: Path) -> None:
    loads = [
        {"streams": streams, "first_median": first, "tokens_a_second_a_stream": rate}
        for streams, first, rate in ((9, 0.3, 60.0), (1, 0.1, 100.0))
    ]
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"tokens": 256, "loads": loads}))
    model = EngineModel.read(file)
    assert (model.rate(1), model.rate(5), model.rate(9), model.rate(18)) == (100.0, 80.0, 60.0, 30.0)
    assert [model.first(streams) for streams in (1, 5, 50)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"loads": []}', '{"loads": [{"streams": 1}]}'])
def test_file_that_bench_has_not_written_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(EngineModelError, match=r"expected what|no streams"):
        EngineModel.read(tmp_path / "model.json")


def test_one_worker_takes_as_long_as_arithmetic_says() -> None:
    outcome = simulated(Endpoint(RequestCount(1000), 1, 1), read_traffic("burst:96", tokens=100))
    assert outcome.makespan == pytest.approx(96 / 8 * 2.0, rel=0.03)
    assert outcome.answered == {"worker-1": 96}


def test_late_workers_share_what_is_left_in_the_queue() -> None:
    endpoint = Endpoint(RequestCount(32), 1, 3, cold_start_seconds=4.0)
    outcome = simulated(endpoint, read_traffic("burst:96", tokens=100))
    assert min(outcome.answered.values()) >= 96 / 5
    greedy = simulated(endpoint, read_traffic("burst:96", tokens=100), reserve=292)
    assert greedy.answered == {"worker-1": 96}
    assert outcome.makespan < 0.65 * greedy.makespan


def test_workers_are_paid_from_their_start_to_the_idle_time_out() -> None:
    outcome = simulated(Endpoint(RequestCount(1), 0, 1, 7.0, 12.0), [Arrival(0.0, 100)])
    assert outcome.gpu_seconds == pytest.approx(12 + 2 + 7, abs=2)
    assert outcome.firsts() == [pytest.approx(12.0, abs=1)]
    assert outcome.price(3.6) == pytest.approx(outcome.gpu_seconds * 0.001 / 100 * 1e6)


def test_every_job_of_a_thousand_workers_is_answered_once() -> None:
    traffic = read_traffic("burst:4000", tokens=50)
    outcome = simulated(Endpoint(RequestCount(2), 0, 1000, 5.0, 30.0), traffic, slots=2)
    assert len(outcome.jobs) == 4000
    assert all(0 <= job.submitted <= job.taken < job.first <= job.finished for job in outcome.jobs)
    assert outcome.most_workers() == 1000
    assert all(life.ended is not None for life in outcome.workers)


def test_advice_is_the_cheapest_that_meets_the_goal_or_the_one_that_waits_least() -> None:
    outcome = simulated(Endpoint(RequestCount(1), 1, 1), read_traffic("burst:1", tokens=10))
    cheap = Choice(Endpoint(RequestCount(9)), outcome, price=1.0, p95_wait=20.0)
    dear = Choice(Endpoint(QueueDelay(2)), outcome, price=2.0, p95_wait=5.0)
    assert advice([cheap, dear], 10.0).startswith("the cheapest that meets the goal: delay:2, ")
    assert advice([cheap, dear], 30.0).startswith("the cheapest that meets the goal: count:9, ")
    assert advice([cheap, dear], 1.0).startswith("none meets the goal; the one that waits least: delay:2, ")


def test_table_in_the_documentation_is_what_the_simulation_gives() -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")
    load, streams, price = re.findall(r"scripts/plan (days:0\.5:1) --streams (\d+) --price ([\d.]+)", page)[0]
    worker = Worker.taking(PACED, int(streams))
    endpoint = Endpoint(RequestCount(8), least=0, most=20, idle_seconds=60.0, cold_start_seconds=90.0)
    traffic = read_traffic(load, tokens=500)
    outcome = Simulation(endpoint, worker, traffic).outcome()
    row = Choice(endpoint, outcome, outcome.price(float(price)), percentile_95(outcome.waits())).row(10.0)
    assert row in [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in page.splitlines()]
    assert f"{len(traffic):,} jobs" in page
