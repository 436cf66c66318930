"""The worker as it is, on an emulated Waverless: only `WAVERLESS_*` variables, and answers in its form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from common.web_server import serving
from local_runpod import Job, JobState
from scripts.worker_process import Worker, free_port, start_worker
from tests.answers import error_of
from tests.waiting import until
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@dataclass
class Running:
    platform: Waverless
    worker: Worker
    health_url: str

    async def answer(self, job_input: Any) -> Job:
        return await self.platform.queue.submit(job_input).finished(20)


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Running]:
    platform, port = Waverless(), free_port()
    async with serving(platform.app(), "127.0.0.1", 0) as platform_port:
        platform.base_url = f"http://127.0.0.1:{platform_port}"
        worker = await start_worker(None, platform.environment() | {"WAVERLESS_HEALTH_PORT": str(port)})
        running = Running(platform, worker, f"http://127.0.0.1:{port}/health")
        await running.answer(HELLO)
        yield running
        assert await worker.stop() == 0, worker.log


async def test_output_is_one_object_sent_once(running: Running) -> None:
    job = await running.answer(HELLO)
    assert job.output["echo"]["messages"] == HELLO["messages"]
    assert (job.state, job.answers) == (JobState.COMPLETED, 1)
    assert running.platform.refused == []


@pytest.mark.parametrize(
    "job_input",
    [
        {**HELLO, "stream": True, "stream_options": {"include_usage": True}},
        {"openai_route": "/v1/chat/completions", "openai_input": {**HELLO, "stream": True}},
        {"text": "a", "stream": True},
    ],
)
async def test_streamed_job_is_answered_unstreamed(running: Running, job_input: dict[str, Any]) -> None:
    job = await running.answer(job_input)
    assert (job.state, job.answers) == (JobState.COMPLETED, 1)
    assert job.output["echo"]["stream"] is False
    assert "stream_options" not in job.output["echo"]
    await until(lambda: running.worker.log.count("answered unstreamed") == 1)
    assert not any("/job-stream/" in call for call in running.platform.calls)


async def test_answer_that_is_no_object_is_wrapped_in_one(running: Running) -> None:
    job = await running.answer({"text": ["a", "b"], "script": {"answer": [{"text": "1"}, {"text": "2"}]}})
    assert job.output == {"output": [{"text": "1"}, {"text": "2"}]}


async def test_failure_is_reported_with_its_reason(running: Running) -> None:
    error = error_of(await running.answer({"messages": "hello"}))
    assert (error["code"], error["param"]) == (400, "messages")


async def test_worker_s_calls_carry_its_id_and_key_and_ask_no_stop_channel(running: Running) -> None:
    await running.answer(HELLO)
    workers = {call.split("/")[4] for call in running.platform.calls}
    assert workers == {"pod-7"}
    assert running.platform.keys == {"waverless-secret"}
    assert not any("/job-stop/" in call for call in running.platform.calls)
    assert "waverless-secret" not in running.worker.log


async def test_ping_comes_at_the_interval_asked_for(running: Running) -> None:
    before = len(running.platform.queue.pings["pod-7"])
    async with asyncio.timeout(8):  # the SDK's own interval is 10 s
        while len(running.platform.queue.pings["pod-7"]) < before + 3:
            await asyncio.sleep(0.1)


async def test_health_answers_while_the_worker_lives(running: Running) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(running.health_url)
    assert (answer.status_code, answer.json()["status"], answer.json()["worker_id"]) == (200, "ok", "pod-7")


async def test_port_that_is_taken_costs_health_alone() -> None:
    platform = Waverless()
    async with serving(platform.app(), "127.0.0.1", 0) as port:
        platform.base_url = f"http://127.0.0.1:{port}"
        environment = platform.environment() | {"WAVERLESS_HEALTH_PORT": str(port), "WAVERLESS_LOG_LEVEL": "WARN"}
        worker = await start_worker(None, environment)
        assert (await platform.queue.submit(HELLO).finished(20)).state is JobState.COMPLETED
        assert await worker.stop() == 0
    await until(lambda: "no /health for Waverless, but jobs are answered" in worker.log)
    assert "INFO" not in worker.log, "the platform's log level counts"
