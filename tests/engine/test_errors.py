"""What the real SGLang says of bad requests, as the client of a job sees it; and a cancelled stream."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from embedded.conversations import conversation
from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from tests.answers import error_of, events_of

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"

# what is asked -> input, status, part of the message
INVALID: dict[str, tuple[dict[str, Any], int, str]] = {
    "chat, parameter out of range": ({"messages": HELLO, "temperature": -1}, 400, "temperature"),
    "chat, field of a wrong type": (
        {"messages": HELLO, "max_tokens": "many"},
        400,
        "max_tokens: Input should be a valid integer, unable to parse string as an integer",
    ),
    "chat, role that nobody has": (
        {"messages": [{"role": "wizard", "content": "Hello"}]},
        400,
        "messages[0].role: 'role' must be one of 'system'",
    ),
    "chat, field missing": (
        {"openai_route": CHAT, "openai_input": {"model": "glm-4.7-flash"}},
        400,
        "messages: Field required",
    ),
    "generate, parameter out of range": (
        {"text": "hi", "sampling_params": {"max_new_tokens": -1}},
        400,
        "max_new_tokens must be at least 0",
    ),
    "prompt too long": ({"text": "x " * 20_000, "sampling_params": {"max_new_tokens": 1}}, 400, "context length"),
    "unknown route": ({"openai_route": "/v1/nothing", "openai_input": {"a": 1}}, 404, "Not Found"),
    "wrong method": ({"openai_route": "/v1/models", "openai_input": {"a": 1}}, 405, "Method Not Allowed"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("case", INVALID)
async def test_invalid_request_is_told_and_the_next_answered(
    platform: Platform, worker: Worker, case: str, stream: bool
) -> None:
    job_input, code, message = INVALID[case]
    if "openai_input" in job_input:
        job_input = {**job_input, "openai_input": {**job_input["openai_input"], "stream": stream}}
    else:
        job_input = {**job_input, "stream": stream}
    job = await platform.answer(job_input)
    error = error_of(job)
    assert error["code"] == code
    assert message in error["message"]
    assert not re.search(r"\n|'loc'|\.py|site-packages|Traceback|File \"", error["message"])
    assert "[DONE]" not in events_of(job.stream)
    greeting = conversation("greeting_without_thinking")
    answer = await platform.answer(greeting.request())
    assert answer.output[0]["choices"][0]["message"]["content"] == greeting.content


async def test_engine_logs_no_prompt_not_even_of_a_bad_request(platform: Platform, worker: Worker) -> None:
    prompt = "nobody must read this"
    for job_input in (
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": 5},
        {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 5},
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": "many"},
        {"messages": [{"role": "user", "content": {"not": prompt}}]},
        {"messages": [{"role": prompt, "content": "x"}]},
        {"text": prompt, "sampling_params": {"max_new_tokens": -1}},
        {"text": prompt * 5000, "sampling_params": {"max_new_tokens": 5}},
        {"text": "x", "sampling_params": {"temperature": prompt}},
        {"openai_route": CHAT, "openai_input": {"messages": prompt}},
        {"openai_route": CHAT, "openai_input": {"messages": [], "tools": prompt}},
    ):
        await platform.answer(job_input)
    assert prompt not in worker.log


async def test_unknown_model_card_is_told(platform: Platform, worker: Worker) -> None:
    error = error_of(await platform.answer({"openai_route": "/v1/models/gpt-5"}))
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "does not exist" in error["message"]


async def test_cancelled_stream_is_aborted_in_the_engine(platform: Platform, worker: Worker) -> None:
    endless = {"text": "Count: ", "stream": True, "sampling_params": {"max_new_tokens": 3500, "ignore_eos": True}}
    job = platform.queue.submit(endless)
    await job.streamed(2, 30)
    assert await _running_requests(platform) == 1
    platform.queue.cancel(job)
    async with asyncio.timeout(3):
        while await _running_requests(platform):
            await asyncio.sleep(0.1)
    assert job.state is JobState.CANCELLED
    assert job.answers == 0


async def _running_requests(platform: Platform) -> int:
    """How many requests the engine's scheduler works on, by its own count."""
    job = await platform.answer({"openai_route": "/v1/loads"})
    loads = job.output[0]["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)
