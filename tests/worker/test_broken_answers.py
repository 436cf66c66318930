"""Answers that break off: as unmodified SDKs see them, and on a platform that takes less than it should."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, Worker, free_port, start_worker, until_api_is_ready
from tests.answers import events_of

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
MORE_RESTARTS = {"ENGINE_MAX_RESTARTS": "100"}
DIES = {"script": {"events": 2, "then": "crash"}}


@dataclass
class Api:
    worker: Worker
    url: str


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[Api]:
    port = free_port()
    worker = await start_worker(None, MORE_RESTARTS, arguments=("--rp_serve_api", "--rp_api_port", str(port)))
    url = f"http://127.0.0.1:{port}"
    await until_api_is_ready(url, worker)
    yield Api(worker, url)
    assert await worker.stop() == 0, worker.log


async def test_openai_chat_raises_when_the_engine_dies_in_mid_stream(api: Api) -> None:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/openai/v1", api_key="-", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=DIES)
        with pytest.raises(openai.APIError, match="the answer was cut off"):
            async for _ in stream:
                pass


async def test_openai_responses_raise_when_the_engine_dies_in_mid_stream(api: Api) -> None:
    async with openai.AsyncOpenAI(base_url=f"{api.url}/openai/v1", api_key="-", max_retries=0) as client:
        stream = await client.responses.create(model="m", input="Hello", stream=True, extra_body=DIES)
        with pytest.raises(openai.APIError, match="the answer was cut off"):
            async for _ in stream:
                pass


async def test_anthropic_raises_when_the_engine_dies_in_mid_stream(api: Api) -> None:
    async with anthropic.AsyncAnthropic(base_url=f"{api.url}/openai", api_key="-", max_retries=0) as client:
        stream = await client.messages.create(model="m", messages=HELLO, max_tokens=5, stream=True, extra_body=DIES)
        with pytest.raises(anthropic.APIStatusError, match="the answer was cut off"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("then", ["half", "eof", "drop"])
async def test_stream_that_is_cut_raises_in_every_sdk(api: Api, then: str) -> None:
    cut = {"script": {"events": 2, "then": then}}
    async with openai.AsyncOpenAI(base_url=f"{api.url}/openai/v1", api_key="-", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=cut)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


async def test_event_that_the_platform_refuses_as_too_large_ends_the_stream_and_is_in_the_result(
    platform: Platform, worker: Worker
) -> None:
    script = {"events": 3, "text": "x" * 1_200_000}
    job = await platform.answer({"messages": HELLO, "stream": True, "script": script})
    assert job.state is JobState.COMPLETED
    [error] = events_of(job.stream)
    assert error["error"]["code"] == 413
    assert "1 MB" in error["error"]["message"]
    whole = events_of(job.output)
    assert [len(event["choices"][0]["delta"]["content"]) for event in whole[:-1]] == [1_200_000] * 3
    assert whole[-1] == "[DONE]"


async def test_openai_client_is_told_of_the_event_that_was_too_large(api: Api) -> None:
    too_large = {"script": {"events": 2, "text": "x" * 1_200_000}}
    async with openai.AsyncOpenAI(base_url=f"{api.url}/openai/v1", api_key="-", max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=too_large)
        with pytest.raises(openai.APIError, match="1 MB"):
            async for _ in stream:
                pass


async def test_finished_answers_outlive_a_stream_channel_that_is_away(platform: Platform, worker: Worker) -> None:
    platform.faults.refusals["job-stream"] += [503] * 1000
    try:
        jobs = [platform.queue.submit({"messages": HELLO, "n": number}) for number in range(1, 16)]
        answers = [await job.finished(30) for job in jobs]
    finally:
        platform.faults.refusals["job-stream"].clear()
    assert [job.state for job in answers] == [JobState.COMPLETED] * 15
    assert [job.output[0]["echo"]["n"] for job in answers] == list(range(1, 16))
    assert all(json.dumps(job.output) and not job.stream for job in answers)
