"""Every memorised conversation, exactly, from the real SGLang through the whole worker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from embedded.conversations import COMPLETIONS, CONVERSATIONS, Completion, Conversation
from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from tests.answers import events_of

pytestmark = pytest.mark.anyio

Answer = tuple[str, str | None, tuple[tuple[str, dict[str, str]], ...]]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.name)
async def test_chat_unstreamed(platform: Platform, worker: Worker, conversation: Conversation) -> None:
    job = await platform.answer(conversation.request())
    assert job.state is JobState.COMPLETED, job.error
    [answer] = job.output
    assert answer["model"] == "glm-4.7-flash"
    [choice] = answer["choices"]
    assert choice["finish_reason"] == ("tool_calls" if conversation.tool_calls else "stop")
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    assert _answer(message.get("content"), message.get("reasoning_content"), calls) == _expected(conversation)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.name)
async def test_chat_streamed_through_the_openai_route(
    platform: Platform, worker: Worker, conversation: Conversation
) -> None:
    body = {"model": "glm-4.7-flash", "stream": True, **conversation.request()}
    job = await platform.answer({"openai_route": "/v1/chat/completions", "openai_input": body})
    assert job.state is JobState.COMPLETED, job.error
    *events, done = events_of(job.stream)
    assert done == "[DONE]"
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls: list[dict[str, str]] = []
    for delta in deltas:
        for piece in delta.get("tool_calls") or ():
            if piece["function"].get("name"):
                calls.append({"name": piece["function"]["name"], "arguments": ""})
            calls[piece["index"]]["arguments"] += piece["function"].get("arguments") or ""
    content = "".join(delta.get("content") or "" for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert _answer(content, reasoning, calls) == _expected(conversation)


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("completion", COMPLETIONS, ids=lambda c: c.name)
async def test_native_generate(platform: Platform, worker: Worker, completion: Completion, stream: bool) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 64}
    job = await platform.answer({"text": completion.text, "sampling_params": sampling, "stream": stream})
    assert job.state is JobState.COMPLETED, job.error
    # SGLang's native stream repeats the text so far in every event.
    answer = events_of(job.stream)[-2] if stream else job.output[0]
    assert answer["text"] == completion.continuation
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


async def test_native_generate_from_token_ids(platform: Platform, worker: Worker) -> None:
    body = {"model": "glm-4.7-flash", "prompt": COMPLETIONS[0].text}
    tokenized = await platform.answer({"openai_route": "/v1/tokenize", "openai_input": body})
    job = await platform.answer(
        {"input_ids": tokenized.output[0]["tokens"], "sampling_params": {"temperature": 0, "max_new_tokens": 64}}
    )
    assert job.output[0]["text"] == COMPLETIONS[0].continuation


async def test_models(platform: Platform, worker: Worker) -> None:
    job = await platform.answer({"openai_route": "/v1/models"})
    assert [model["id"] for model in job.output[0]["data"]] == ["glm-4.7-flash"]


async def test_many_jobs_at_once_get_their_own_answers(platform: Platform, worker: Worker) -> None:
    jobs = [(c, platform.queue.submit({**c.request(), "stream": False})) for c in CONVERSATIONS * 3]
    for conversation, job in jobs:
        await job.finished(60)
        message = job.output[0]["choices"][0]["message"]
        assert (message.get("content") or "") == conversation.content


def _answer(content: str | None, reasoning: str | None, calls: list[dict[str, Any]]) -> Answer:
    return content or "", reasoning or None, tuple((call["name"], json.loads(call["arguments"])) for call in calls)


def _expected(conversation: Conversation) -> Answer:
    return conversation.content, conversation.reasoning, conversation.tool_calls
