"""`GET /metrics`, `/health` and the figures of a running worker: what they say is what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.meters import METERS
from scripts.worker_process import (
    Worker,
    free_port,
    running_platform,
    running_worker,
    start_worker,
    until_api_is_ready,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio

SAID = "xylophone-of-the-user"
HELLO = [{"role": "user", "content": SAID}]
KEY = "a-key-of-the-local-api"
CHAT = "/v1/chat/completions"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(page: str) -> Samples:
    families = list(text_string_to_metric_families(page))
    assert len({family.name for family in families}) == len(families), "each family is there once"
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@dataclass
class Api:
    worker: Worker
    client: httpx.AsyncClient

    async def metrics(self) -> Samples:
        answer = await self.client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert SAID not in answer.text
        assert KEY not in answer.text
        return samples_of(answer.text)


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[Api]:
    """A worker in API mode, whose engine has metrics of its own."""
    port = free_port()
    environment = {"LOCAL_API_KEY": KEY, "ENABLE_METRICS": "true", "MAX_CONCURRENCY": "7"}
    arguments = ("--rp_serve_api", "--rp_api_port", str(port))
    engine = {"loads": {"token_usage": 0.25, "speculative": {"accept_length": 2.5}}}
    worker = await start_worker(None, environment, arguments=arguments, engine=engine)
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
            await until_api_is_ready(f"http://127.0.0.1:{port}", worker, key=KEY)
            yield Api(worker, client)
    finally:
        await worker.stop()


async def test_page_in_api_mode_has_every_family_and_asks_for_the_key(api: Api) -> None:
    assert (await api.client.get("/metrics", headers={"Authorization": ""})).status_code == 401
    page = (await api.client.get("/metrics")).text
    names = {family.name for family in text_string_to_metric_families(page)}
    assert {meter.name for meter in METERS} <= names
    assert "process_resident_memory_bytes" in names


async def test_page_says_where_the_start_went(api: Api) -> None:
    names = ("worker", "imports", "download", "weights", "cuda_graphs", "warm_up", "ready")
    page = await api.metrics()
    phases = {name: value(page, "worker_start_phase_seconds", phase=name) for name in names}
    assert phases["ready"] > 0
    assert phases["worker"] > 0
    assert all(seconds >= 0 for seconds in phases.values())


async def test_jobs_and_tokens_on_the_page_are_those_that_were_answered(api: Api) -> None:
    before = await api.metrics()
    chunks = [
        {"choices": [{"delta": {"content": SAID}}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8}},
    ]
    body = {"messages": HELLO, "stream": True, "script": {"chunks": chunks, "pause": 0.05}}
    for _ in range(3):
        answer = await api.client.post(f"/openai{CHAT}", json=body)
        assert answer.text.endswith("data: [DONE]\n\n")
    bad = await api.client.post("/runsync", json={"input": {"openai_route": f"/{SAID}"}})
    assert bad.json()["status"] == "FAILED"

    after: Samples = {}

    async def counted() -> bool:
        after.update(await api.metrics())
        return value(after, "worker_jobs_total", outcome="failed", route="none") == 1

    while not await counted():
        pass

    def growth(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before.get(key, 0.0)

    assert growth("worker_jobs_total", outcome="completed", route=CHAT) == 3
    assert growth("gen_ai_server_request_duration_seconds_count", gen_ai_operation_name="chat") == 3
    assert growth("gen_ai_server_time_to_first_token_seconds_count") == 3
    assert growth("worker_time_between_outputs_seconds_count") >= 3
    for kind, tokens in {"input": 27, "output": 24}.items():
        assert growth("worker_tokens_total", gen_ai_token_type=kind) == tokens
    assert growth("worker_platform_calls_total", kind="result", status="ok") == 4
    assert growth("worker_platform_calls_total", kind="output", status="ok") >= 6
    assert value(after, "worker_jobs_in_flight") == value(after, "worker_jobs_waiting") == 0
    assert value(after, "worker_capacity_jobs") == 7
    assert value(after, "worker_capacity_limit", limit="fixed") == 1


async def test_engine_s_own_metrics_follow_on_the_same_page(api: Api) -> None:
    samples = await api.metrics()
    assert value(samples, "sglang:num_running_reqs", model_name="scripted") == 3
    assert not any(name == "python_info" for name, _ in samples), "families that are not SGLang's are left out"


async def test_health_says_how_the_engine_is_and_figures_what_happened(api: Api) -> None:
    await api.client.post(f"/openai{CHAT}", json={"messages": HELLO})
    health = (await api.client.get("/health")).json()
    engine = health["engine"]
    assert (engine["state"], engine["capacity"], engine["limit"]) == ("ready", 7, "fixed")
    assert engine["since"].endswith("+00:00")
    assert {"jobs", "workers"} <= set(health), "what RunPod says is still there"
    figures = (await api.client.get("/figures.json")).json()
    assert figures["engine"]["state"] == "ready"
    assert figures["last_minute"]["jobs_completed"] >= 1
    assert figures["last_minute"]["kv_usage"] == 0.25
    assert figures["last_minute"]["accept_length"] == 2.5


async def test_restart_is_counted_by_its_cause_and_seen_in_health(api: Api) -> None:
    before = (await api.client.get("/health")).json()["engine"]
    body = {"messages": HELLO, "script": {"first": {"then": "crash"}}}
    answering = api.client.post(f"/openai{CHAT}", json=body)
    assert (await answering).status_code == 200
    samples = await api.metrics()
    assert value(samples, "worker_engine_restarts_total", cause="engine") == 1
    assert value(samples, "worker_jobs_replayed_total") == 1
    assert value(samples, "worker_engine_state", state="ready") == 1
    assert value(samples, "worker_engine_state", state="restarting") == 0
    assert value(samples, "worker_job_wait_seconds_sum") >= 0.5
    after = (await api.client.get("/health")).json()["engine"]
    assert after["since"] >= before["since"]


async def test_queue_worker_serves_metrics_on_loopback_if_told_to_and_counts_refusals() -> None:
    port = free_port()
    environment = {"METRICS_PORT": str(port)}
    async with (
        running_platform() as platform,
        running_worker(platform, environment) as worker,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        platform.faults.refusals["job-done"] += [500, 429]
        job = await platform.answer({"messages": HELLO})
        await until(lambda: f"job {job.id}: completed" in worker.log)
        samples = samples_of((await client.get("/metrics")).text)
        assert value(samples, "worker_platform_calls_total", kind="result", status="500") == 1
        assert value(samples, "worker_platform_calls_total", kind="result", status="429") == 1
        assert value(samples, "worker_platform_retries_total", kind="result") == 2
        assert value(samples, "worker_jobs_total", outcome="completed", route=CHAT) == 1
        # What has not happened yet is 0, or Prometheus would not see its first time as a growth.
        assert value(samples, "worker_jobs_total", outcome="failed", route=CHAT) == 0
        assert value(samples, "worker_platform_retries_total", kind="output") == 0
        assert value(samples, "worker_engine_restarts_total", cause="engine") == 0
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
        assert (await client.head("/metrics")).text == ""


async def test_queue_worker_without_a_metrics_port_listens_nowhere() -> None:
    async with running_platform() as platform, running_worker(platform) as worker:
        assert "/metrics" not in worker.log


async def test_last_words_of_a_worker_are_the_figures_of_its_unfinished_minute() -> None:
    async with running_platform() as platform, running_worker(platform) as worker:
        await platform.answer({"messages": HELLO})
        await worker.stop()
        lines = [line for line in worker.log.splitlines() if '"jobs_completed":' in line]
        assert len(lines) == 1
        assert '"jobs_completed":2,"jobs_failed":0' in lines[0]
