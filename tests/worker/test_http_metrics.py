"""Over plain HTTP too: the metrics page, one line a request, `/health` with the engine's state, the trace context."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.job_record import FIELDS
from scripts.worker_process import Worker, free_port, running_http_worker, start_worker
from tests.waiting import until

pytestmark = pytest.mark.anyio

SAID = "xylophone-of-the-user"
KEY = "sk-a-key-of-the-engine"
CHAT = "/v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Server:
    worker: Worker
    client: httpx.AsyncClient


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    port, engine_port = free_port(), free_port()
    environment = {
        "API_KEY": KEY,
        "LOG_FORMAT": "json",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ENGINE_PORT": str(engine_port),
    }
    worker = await start_worker(None, environment, arguments=("--serve_http",))
    worker.engine_url = f"http://127.0.0.1:{engine_port}"
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:

            async def is_ready() -> bool:
                try:
                    return (await client.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            while not await is_ready():
                assert worker.process.returncode is None, worker.log
            yield Server(worker, client)
    finally:
        await worker.stop()


async def test_health_says_how_the_engine_is(server: Server) -> None:
    health = (await server.client.get("/health", headers={"Authorization": ""})).json()
    assert health["state"] == "ready"
    assert health["in_flight"] == 0
    assert (await server.client.get("/ping")).content == b""


async def test_metrics_are_for_those_who_show_the_key_and_count_requests(server: Server) -> None:
    assert (await server.client.get("/metrics", headers={"Authorization": ""})).status_code == 401
    body = {"model": "m", "messages": [{"role": "user", "content": SAID}], "stream": True}
    answer = await server.client.post(CHAT, json=body, headers={"x-request-id": "my-request", "traceparent": PARENT})
    assert answer.text.endswith("data: [DONE]\n\n")
    page = await server.client.get("/metrics")
    samples = {
        (s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(page.text) for s in f.samples
    }
    assert samples["worker_jobs_total", "completed", CHAT] == 1
    assert samples["gen_ai_server_time_to_first_token_seconds_count",] == 1
    await until(lambda: "my-request" in server.worker.log)
    [line] = [json.loads(line) for line in server.worker.log.splitlines() if '"requestId":"my-request"' in line]
    assert set(FIELDS) <= set(line)
    assert (line["outcome"], line["route"], line["streamed"], line["bytes"]) == (
        "completed",
        CHAT,
        True,
        len(answer.content),
    )
    assert SAID not in server.worker.log
    assert KEY not in server.worker.log + page.text


async def test_trace_context_reaches_the_engine(server: Server) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=1"}
    await server.client.post(CHAT, json={"model": "m", "messages": []}, headers=headers)
    seen = (await server.worker.engine_requests())[-1]["headers"]
    assert (seen["traceparent"], seen["tracestate"]) == (PARENT, "a=1")


async def test_load_balancer_s_worker_logs_objects_from_its_first_line_to_its_last() -> None:
    async with running_http_worker({"RUNPOD_ENDPOINT_ID": "e"}, engine={"says": "Load weight begin.\n"}) as worker:
        async with httpx.AsyncClient(base_url=worker.http_url, trust_env=False, timeout=30) as client:
            await client.post(CHAT, json={"messages": []}, headers={"x-request-id": "mine"})
        await worker.stop()
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert {"requestId", "message", "level", "time", "source"} <= set.intersection(*map(set, lines))
    assert [line["outcome"] for line in lines if line["requestId"] == "mine"] == ["completed"]
    assert {line["source"] for line in lines} >= {"worker", "engine"}
