"""The three request patterns, streamed and not, through the whole worker."""

from __future__ import annotations

from typing import Any

import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from tests.answers import events_of, text_of

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Hello, 世界"}]
PATTERNS: dict[str, tuple[dict[str, Any], str]] = {
    "openai_route": (
        {"openai_route": "/v1/chat/completions", "openai_input": {"messages": MESSAGES}},
        "/v1/chat/completions",
    ),
    "messages": ({"messages": MESSAGES}, "/v1/chat/completions"),
    "text": ({"text": "Hello", "sampling_params": {"max_new_tokens": 5}}, "/generate"),
    "input_ids": ({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 5}}, "/generate"),
}


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_unstreamed_job_has_one_output_the_parsed_answer(
    platform: Platform, worker: Worker, pattern: str
) -> None:
    job_input, path = PATTERNS[pattern]
    job = await platform.answer(job_input)
    assert job.state is JobState.COMPLETED
    assert job.answers == 1
    [answer] = job.output
    assert answer["path"] == path
    sent = job_input.get("openai_input", job_input)
    assert answer["echo"] == ({"model": "glm-4.7-flash"} if pattern == "messages" else {}) | sent


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_streamed_job_outputs_whole_events_and_ends_with_done(
    platform: Platform, worker: Worker, pattern: str
) -> None:
    job_input, _ = PATTERNS[pattern]
    stream = {"stream": True, "script": {"events": 20, "pause": 0.005}}
    if "openai_input" in job_input:
        job_input = {**job_input, "openai_input": {**job_input["openai_input"], **stream}}
    else:
        job_input = {**job_input, **stream}
    job = await platform.answer(job_input)
    assert job.state is JobState.COMPLETED
    assert job.output == job.stream
    *events, done = events_of(job.stream)
    assert done == "[DONE]"
    assert [event["index"] for event in events] == list(range(20))


@pytest.mark.parametrize("empty", [{}, {"openai_input": None}, {"openai_input": {}}], ids=["missing", "null", "empty"])
@pytest.mark.parametrize("route", ["/v1/models", "v1/models"])
async def test_route_without_input_is_a_get(
    platform: Platform, worker: Worker, route: str, empty: dict[str, Any]
) -> None:
    job = await platform.answer({"openai_route": route, **empty})
    assert job.state is JobState.COMPLETED
    last = (await worker.engine_requests())[-1]
    assert (last["method"], last["path"], last["body"]) == ("GET", "/v1/models", None)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
async def test_text_survives_any_chunking(platform: Platform, worker: Worker, chunk_bytes: int) -> None:
    text = "서울 👋 °C \u2028 \u2029 \u0085 \x0b end"
    script = {"events": 3, "text": text, "chunk_bytes": chunk_bytes}
    job = await platform.answer({"messages": MESSAGES, "stream": True, "script": script})
    assert job.state is JobState.COMPLETED
    assert text_of(events_of(job.stream)) == text * 3


async def test_model_is_kept_where_it_is_given(platform: Platform, worker: Worker) -> None:
    job = await platform.answer({"messages": MESSAGES, "model": "my-lora"})
    assert job.output[0]["echo"]["model"] == "my-lora"


async def test_connection_that_breaks_after_the_last_event_takes_nothing_away(
    platform: Platform, worker: Worker
) -> None:
    job = await platform.answer({"messages": MESSAGES, "stream": True, "script": {"then": "drop_after_done"}})
    assert job.state is JobState.COMPLETED
    assert events_of(job.stream)[-1] == "[DONE]"


async def test_stream_of_a_protocol_without_done_is_complete_with_its_own_last_event(
    platform: Platform, worker: Worker
) -> None:
    body = {"messages": MESSAGES, "stream": True, "script": {"then": "message_stop"}}
    job = await platform.answer({"openai_route": "/v1/messages", "openai_input": body})
    assert job.state is JobState.COMPLETED
    assert job.stream[-1].endswith('event: message_stop\ndata: {"type": "message_stop"}\n\n')


async def test_concurrent_jobs_keep_their_answers_apart(platform: Platform, worker: Worker) -> None:
    jobs = [
        platform.queue.submit(
            {"messages": MESSAGES, "stream": True, "script": {"events": 10, "pause": 0.01, "text": f"{n} "}}
        )
        for n in range(60)
    ]
    for n, job in enumerate(jobs):
        await job.finished(30)
        assert text_of(events_of(job.stream)) == f"{n} " * 10
