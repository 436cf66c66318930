"""What clients are told when something is wrong, and that the next job is always answered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, Worker, running_worker
from tests.answers import error_of, events_of

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]

BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "null": (None, "'input' must be a JSON object, not null"),
    "string": ("hello", "'input' must be a JSON object, not a string"),
    "array": ([], "'input' must be a JSON object, not an array"),
    "nothing in it": ({}, "no request in 'input'"),
    "unknown fields": ({"inputs": "hi"}, "no request in 'input'"),
    "two patterns": ({"messages": HELLO, "text": "hi"}, "only one of 'messages', 'text'"),
    "stray stream": ({"openai_route": "/v1/models", "stream": True}, "put 'stream' inside 'openai_input'"),
    "route that is not text": ({"openai_route": 5}, "'openai_route' must be a path"),
    "route to another host": ({"openai_route": "http://example.com/v1/models"}, "must be a plain path"),
    "route with dots": ({"openai_route": "/v1/../flush_cache"}, "must be a plain path"),
    "input that is not an object": (
        {"openai_route": "/v1/chat/completions", "openai_input": "hi"},
        "'openai_input' must be a JSON object, not a string",
    ),
    "messages that are not an array": ({"messages": "hi"}, "'messages' must be a non-empty array"),
    "message without a role": ({"messages": [{"content": "hi"}]}, "'messages[0]' must be an object with a 'role'"),
    "text that is not text": ({"text": 5}, "'text' must be a string"),
    "token ids that are none": ({"input_ids": ["a"]}, "'input_ids' must be a non-empty array of token ids"),
    "parameters that are not an object": ({"text": "hi", "sampling_params": 5}, "'sampling_params' must be an object"),
    "stream that is not a boolean": ({"messages": HELLO, "stream": "maybe"}, "'stream' must be true or false"),
    "half a surrogate pair": ({"text": "\ud800"}, "half of a surrogate pair"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
async def test_bad_input_is_refused_with_the_accepted_shapes_and_the_next_job_answered(
    platform: Platform, worker: Worker, case: str
) -> None:
    job_input, wrong = BAD_INPUTS[case]
    before = len(await worker.engine_requests())
    error = error_of(await platform.answer(job_input))
    assert wrong in error["message"]
    assert (error["code"], error["type"]) == (400, "invalid_request_error")
    for shape in ("openai_route", "messages", "sampling_params"):
        assert shape in error["message"]
    assert len(await worker.engine_requests()) == before, "nothing may be sent for a refused input"
    assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


@pytest.mark.parametrize("route", ["/flush_cache", "/server_info", "/update_weights_from_disk", "/abort_request"])
async def test_routes_that_administer_the_engine_are_forbidden(platform: Platform, worker: Worker, route: str) -> None:
    before = len(await worker.engine_requests())
    error = error_of(await platform.answer({"openai_route": route, "openai_input": {"a": 1}}))
    assert (error["code"], error["type"], error["param"]) == (403, "permission_error", "openai_route")
    assert len(await worker.engine_requests()) == before


FLAT = {"object": "error", "message": "bad temperature", "type": "BadRequestError", "param": "temperature", "code": 400}
UPSTREAM_ERRORS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "flat": (
        400,
        json.dumps(FLAT),
        {"message": "bad temperature", "type": "invalid_request_error", "param": "temperature", "code": 400},
    ),
    "nested": (
        400,
        '{"error": {"message": "max_new_tokens must be at least 0"}}',
        {
            "message": "max_new_tokens must be at least 0",
            "type": "invalid_request_error",
            "param": None,
            "code": 400,
        },
    ),
    "detail": (
        404,
        '{"detail": "Not Found"}',
        {"message": "Not Found", "type": "not_found_error", "param": None, "code": 404},
    ),
    "validation": (
        422,
        '{"detail": [{"loc": ["body", "text"], "msg": "Field required"}]}',
        {"message": "body.text: Field required", "type": "invalid_request_error", "param": None, "code": 422},
    ),
    "plain text": (
        503,
        "out of capacity",
        {"message": "out of capacity", "type": "server_error", "param": None, "code": 503},
    ),
    "nothing": (
        500,
        "",
        {
            "message": "the engine answered with status 500 and no message",
            "type": "server_error",
            "param": None,
            "code": 500,
        },
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
@pytest.mark.parametrize("shape", UPSTREAM_ERRORS)
async def test_upstream_error_keeps_message_and_status(
    platform: Platform, worker: Worker, shape: str, stream: bool
) -> None:
    status, body, expected = UPSTREAM_ERRORS[shape]
    job = await platform.answer({"messages": HELLO, "stream": stream, "script": {"status": status, "body": body}})
    assert error_of(job) == expected
    assert job.stream == []


async def test_source_paths_of_the_engine_stay_inside(platform: Platform, worker: Worker) -> None:
    message = (
        "1 validation error:\n  {'msg': 'Field required'}\n\n"
        '  File "/usr/lib/sglang/http_server.py", line 7, in chat\n    POST /v1/chat/completions\n'
        "model not found in /runpod-volume/models/x"
    )
    script = {"status": 400, "body": json.dumps({"object": "error", "message": message, "code": 400})}
    error = error_of(await platform.answer({"messages": HELLO, "script": script}))
    assert error["message"] == "1 validation error:\n  {'msg': 'Field required'}\n\nmodel not found in <path>"


BROKEN_STREAMS = {
    "drop": (502, "the connection to the engine broke before the answer was complete"),
    "half": (502, "the engine's stream ended before the answer was complete"),
    "eof": (502, "the engine's stream ended before the answer was complete"),
    "abort": (502, "the engine aborted the generation before it was complete"),
    "error": (400, "scripted error"),
}


@pytest.mark.parametrize("events", [0, 5])
@pytest.mark.parametrize("then", BROKEN_STREAMS)
async def test_answer_cut_off_is_an_error_never_a_short_answer(
    platform: Platform, worker: Worker, then: str, events: int
) -> None:
    code, message = BROKEN_STREAMS[then]
    script = {"events": events, "pause": 0.02, "then": then}
    job = await platform.answer({"messages": HELLO, "stream": True, "script": script})
    error = error_of(job)
    assert (error["code"], error["message"]) == (code, message)
    sent = events_of(job.stream)
    assert "[DONE]" not in sent
    if events:
        assert [event["index"] for event in sent[:-1]] == list(range(events))
    if sent:
        assert sent[-1] == {"error": error}, "in mid-stream an SSE error event goes before the failure"
    assert bool(sent) == (events > 0 or then in ("error", "abort"))
    assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


async def test_error_event_keeps_the_protocol_of_its_route(platform: Platform, worker: Worker) -> None:
    body = {"messages": HELLO, "stream": True, "script": {"events": 1, "then": "anthropic_error"}}
    job = await platform.answer({"openai_route": "/v1/messages", "openai_input": body})
    error = error_of(job)
    assert (error["message"], error["type"], error["code"]) == ("data: none left", "overloaded_error", 500)
    head, _, data = "".join(job.stream).split("\n\n")[1].partition("\ndata: ")
    assert (head, json.loads(data)) == ("event: error", {"type": "error", "error": error})


@pytest.mark.parametrize("body", ["", '{"choices": [{"message": {"content": "half'])
async def test_json_that_is_not_whole_is_an_error(platform: Platform, worker: Worker, body: str) -> None:
    error = error_of(await platform.answer({"messages": HELLO, "script": {"status": 200, "body": body}}))
    assert (error["code"], error["message"]) == (502, "the engine's answer is incomplete: it is not valid JSON")


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        ({"error": {"message": "failed", "code": 429}}, 429, "failed"),
        ({"error": {"message": "failed"}}, 500, "failed"),
        ({"choices": [{"finish_reason": "abort"}]}, 502, "the engine aborted the generation before it was complete"),
        ({"meta_info": {"finish_reason": {"type": "abort"}}}, 502, "the engine aborted the generation"),
        ([{}, {"meta_info": {"finish_reason": {"type": "abort"}}}], 502, "the engine aborted the generation"),
    ],
)
async def test_failure_in_the_guise_of_an_answer_is_an_error(
    platform: Platform, worker: Worker, answer: Any, code: int, message: str
) -> None:
    error = error_of(await platform.answer({"messages": HELLO, "script": {"answer": answer}}))
    assert error["code"] == code
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("kind", "body", "output"),
    [
        ("text/plain", "", {}),
        ("text/plain", "words", "words"),
        ("application/json", "[]", []),
        ("application/json", '{"choices": 5}', {"choices": 5}),
    ],
)
async def test_answer_that_is_no_object_is_passed_on(
    platform: Platform, worker: Worker, kind: str, body: str, output: Any
) -> None:
    job = await platform.answer({"messages": HELLO, "script": {"content_type": kind, "body": body}})
    assert job.state is JobState.COMPLETED
    assert job.output == [output]


async def test_output_that_would_be_no_json_is_mended(platform: Platform, worker: Worker) -> None:
    body = '{"logprob": NaN, "text": "\\ud83d"}'
    job = await platform.answer({"messages": HELLO, "script": {"content_type": "application/json", "body": body}})
    assert job.output == [{"logprob": None, "text": "?"}]


@pytest.fixture(scope="module")
async def impatient_worker(platform: Platform, worker: Worker) -> AsyncIterator[Worker]:
    await worker.stop()
    async with running_worker(platform, {"REQUEST_TIMEOUT_SECONDS": "1.5"}) as impatient:
        yield impatient


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
async def test_silence_of_the_engine_is_bounded(platform: Platform, impatient_worker: Worker, stream: bool) -> None:
    script = {"events": 2, "then": "hang"} if stream else {"pause": 60}
    job = await platform.answer({"messages": HELLO, "stream": stream, "script": script})
    error = error_of(job)
    assert (error["code"], error["message"]) == (504, "the engine sent nothing for 1.5 s")
    last = (await impatient_worker.engine_requests())[-1]
    assert last["end"] == "aborted"


async def test_slow_but_steady_stream_is_not_silent(platform: Platform, impatient_worker: Worker) -> None:
    script = {"events": 5, "pause": 0.4}
    job = await platform.answer({"messages": HELLO, "stream": True, "script": script})
    assert job.state is JobState.COMPLETED
