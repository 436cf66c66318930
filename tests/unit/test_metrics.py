"""The meters as Prometheus reads them, and the figures of a minute."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from common import figures, meters, metrics_page
from common.figures import Load, RecentJobs, engine_status, figures_of, minute_lines, quantile, sentence
from common.job_record import JobRecord, Outcome
from common.meters import METERS, Counter, Gauge, Histogram
from common.tasks import cancel
from serverless.metered import MeteredPlatform
from serverless.platform import Platform, PlatformError
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fresh_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meters without what other tests counted."""
    for meter in METERS:
        starts_at_0 = () in meter.values and not isinstance(meter, Histogram)
        monkeypatch.setattr(meter, "values", {(): 0} if starts_at_0 else {})
    monkeypatch.setattr(figures, "_recent", RecentJobs())


async def families() -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(await metrics_page.page())}


async def sample(name: str, **labels: str) -> float:
    found = (s for family in (await families()).values() for s in family.samples)
    [value] = [s.value for s in found if s.name == name and s.labels == labels]
    return value


async def test_every_meter_is_a_family_with_its_kind_and_help() -> None:
    kinds = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
    page = await families()
    for meter in METERS:
        family = page[meter.name]
        assert (family.type, family.documentation) == (kinds[type(meter)], meter.help)
    assert page["process_resident_memory_bytes"].samples[0].value > 0


def test_names_follow_prometheus_conventions() -> None:
    for meter in METERS:
        assert meter.name.startswith(("worker_", "gen_ai_")), meter.name
        assert not meter.name.endswith("_total"), f"{meter.name}: the client adds it"
        assert meter.help.endswith("."), meter.name
        if isinstance(meter, Histogram):
            assert meter.name.endswith("_seconds"), meter.name
            assert sorted(meter.bounds) == list(meter.bounds)


async def test_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = meters.WAIT_SECONDS
    for value in (0.0, 0.001, 0.0011, 5, 1000):
        histogram.observe(value)
    assert await sample("worker_job_wait_seconds_bucket", le="0.001") == 2
    assert await sample("worker_job_wait_seconds_bucket", le="0.005") == 3
    assert await sample("worker_job_wait_seconds_bucket", le="+Inf") == 5
    assert await sample("worker_job_wait_seconds_count") == 5
    assert math.isclose(await sample("worker_job_wait_seconds_sum"), 1005.0021)


async def test_ended_job_is_counted_by_outcome_and_route_with_its_tokens() -> None:
    record = JobRecord.begin("j")
    assert await sample("worker_jobs_in_flight") == 1
    with record.waiting():
        assert await sample("worker_jobs_waiting") == 1
    record.route, record.first_token_seconds, record.replayed = "/v1/chat/completions", 0.3, True
    record.prompt_tokens, record.cached_tokens, record.completion_tokens = 9, 4, 8
    record.end(Outcome.COMPLETED, 200)
    assert await sample("worker_jobs_total", outcome="completed", route="/v1/chat/completions") == 1
    assert await sample("worker_jobs_in_flight") == await sample("worker_jobs_waiting") == 0
    assert await sample("worker_jobs_replayed_total") == 1
    assert await sample("gen_ai_server_time_to_first_token_seconds_count") == 1
    assert await sample("gen_ai_server_request_duration_seconds_count", gen_ai_operation_name="chat") == 1
    for kind, tokens in {"input": 9, "input_cached": 4, "output": 8}.items():
        assert await sample("worker_tokens_total", gen_ai_token_type=kind) == tokens


async def test_paths_that_clients_make_up_are_one_label() -> None:
    for path in ("/v1/a", "/v1/b", None):
        record = JobRecord.begin("j")
        record.route = path
        record.end(Outcome.FAILED)
    assert await sample("worker_jobs_total", outcome="failed", route="other") == 2
    assert await sample("worker_jobs_total", outcome="failed", route="none") == 1
    assert {route for _, route in meters.JOBS.values} == {"other", "none"}


async def test_failure_adds_to_a_series_that_is_there_already() -> None:
    record = JobRecord.begin("j")
    record.route = "/generate"
    record.end(Outcome.COMPLETED, 200)
    for outcome in Outcome:
        counted = await sample("worker_jobs_total", outcome=outcome, route="/generate")
        assert counted == (outcome is Outcome.COMPLETED)


class OnePage:
    def __init__(self, text: str | None) -> None:
        self.text = text

    async def __call__(self) -> str:
        if self.text is None:
            raise TimeoutError
        return self.text


async def test_further_page_follows_and_one_that_fails_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    with metrics_page.with_page(OnePage(None)), metrics_page.with_page(OnePage("sglang:a 1\n")):
        page = await families()
    assert page["sglang:a"].samples[0].value == 1
    assert "worker_jobs_in_flight" in page
    assert "a part of the metrics is missing: TimeoutError" in caplog.text
    assert "sglang:a" not in await families()


REFUSAL = PlatformError("no", 429)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "ok"), (REFUSAL, "429"), (PlatformError("no answer"), "none"), (ValueError(), "none")],
)
async def test_calls_to_the_platform_are_counted_by_kind_and_status(error: Exception | None, status: str) -> None:
    class Fake:
        def begun(self, _: str) -> None: ...

        def ended(self, _: str) -> None: ...

        async def call(self, *_: object) -> None:
            if error is not None:
                raise error

        take = stopped_jobs = post_output = post_progress = post_result = call

    platform: Platform = MeteredPlatform(Fake())  # type: ignore[arg-type]
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "take": lambda: platform.take(1),
        "stop": platform.stopped_jobs,
        "output": lambda: platform.post_output({}, 1),
        "progress": lambda: platform.post_progress({}, 1),
        "result": lambda: platform.post_result({}, {}),
    }
    for call in calls.values():
        with pytest.raises(type(error)) if error is not None else nullcontext():
            await call()
    assert meters.PLATFORM_CALLS.values == {(kind, status): 1 for kind in calls}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.951, 96), (1.0, 100), (0.0, 1)])
def test_quantile_is_one_of_the_numbers(share: float, expected: int) -> None:
    assert quantile(range(1, 101), share) == expected
    assert quantile([7], share) == 7
    assert quantile([], share) is None


def ended(outcome: Outcome, **known: object) -> JobRecord:
    record = JobRecord("j", outcome=outcome)
    for name, value in known.items():
        setattr(record, name, value)
    return record


def test_figures_of_a_minute() -> None:
    records = [
        ended(Outcome.COMPLETED, first_token_seconds=0.2, prompt_tokens=100, cached_tokens=80, completion_tokens=90),
        ended(Outcome.COMPLETED, first_token_seconds=0.4, prompt_tokens=100, cached_tokens=None, completion_tokens=30),
        ended(Outcome.FAILED),
        ended(Outcome.UNDELIVERED),
        ended(Outcome.CANCELLED, prompt_tokens=100, cached_tokens=0),
    ]
    assert figures_of(records, 60.0, Load(0.25, 2.5, 7)) == {
        "jobs_completed": 2,
        "jobs_failed": 2,
        "jobs_cancelled": 1,
        "first_token_p50_seconds": 0.2,
        "first_token_p95_seconds": 0.4,
        "output_tokens_per_second": 2.0,
        "cached_share": 0.4,
        "accept_length": 2.5,
        "kv_usage": 0.25,
        "jobs_in_flight": 0,
        "jobs_waiting": 7,
    }


def test_minute_s_sentence_leaves_out_what_is_not_known() -> None:
    assert sentence(figures_of([], 60.0, Load()), 60.0) == (
        "the last 60 s: 0 jobs completed, 0 failed; 0 in flight, 0 waiting"
    )
    figures = figures_of(
        [ended(Outcome.CANCELLED, first_token_seconds=0.2, completion_tokens=90)], 60.0, Load(0.25, 2.5)
    )
    assert sentence(figures, 60.0) == (
        "the last 60 s: 0 jobs completed, 0 failed, 1 cancelled; first token p50 0.20 s, p95 0.20 s, 1.5 tokens/s, "
        "accept length 2.50, KV cache 25%, 0 in flight, 0 waiting"
    )


async def test_each_job_is_in_exactly_one_minute_s_line_and_a_minute_without_any_has_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    recent = RecentJobs()
    monkeypatch.setattr(figures, "_recent", recent)

    async def load() -> Load:
        recent.add(ended(Outcome.COMPLETED))  # a job that ends while the engine is asked
        if len(recent.since(0)) == 3:
            raise ValueError
        return Load(kv_usage=0.5)

    async with minute_lines(load, seconds=0.01):
        await until(lambda: len(recent.since(0)) >= 5)
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert sum(line["jobs_completed"] for line in lines) == len(recent.since(0))
    assert None in [line["kv_usage"] for line in lines], "an engine that does not answer is no reason to be silent"
    caplog.clear()
    monkeypatch.setattr(figures, "_recent", RecentJobs())
    async with minute_lines(seconds=60):
        pass
    assert not caplog.records


async def test_lag_of_a_blocked_loop_is_measured() -> None:
    measuring = asyncio.create_task(figures.measure_lag(0.01))
    await until(lambda: () in meters.LOOP_LAG_SECONDS.values)
    time.sleep(0.1)  # noqa: ASYNC251 - this is what it measures
    await until(lambda: meters.LOOP_LAG_SECONDS.values[()].sum >= 0.08)
    await cancel(measuring)


def test_only_the_jobs_of_the_last_two_minutes_are_kept() -> None:
    now = 0.0
    recent = RecentJobs(lambda: now)
    for _ in range(5):
        recent.add(ended(Outcome.COMPLETED))
        now += 50.0
    assert len(recent.since(-1)) == 2
    assert len(recent.since(150.0)) == 1


def test_engine_s_status_is_what_the_meters_say() -> None:
    assert engine_status()["state"] is None
    meters.set_one(meters.ENGINE_STATE, "ready", ("starting", "ready"))
    meters.ENGINE_SINCE.set(0.0)
    meters.CAPACITY.set(300)
    meters.CAPACITY_LIMIT.set(1, "fixed")
    assert engine_status() == {
        "state": "ready",
        "since": "1970-01-01T00:00:00+00:00",
        "phase": None,
        "capacity": 300,
        "limit": "fixed",
        "in_flight": 0,
        "waiting": 0,
    }
