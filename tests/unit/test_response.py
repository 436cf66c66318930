"""Streams as the engine sends them: which are whole, cut, or end with an error; errors in the form of each route."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import AnswerCutOffError, JobError
from gateway.error_events import error_event
from gateway.errors import from_payload, from_response
from gateway.response import ErrorEvent, events
from tests.chunks import NO_CEILING, Source

pytestmark = pytest.mark.anyio

DELTA = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETED = b'event: response.completed\ndata: {"type": "response.completed", "response": {}}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type": "message_stop"}\n\n'


async def received(*pieces: bytes) -> str:
    """What comes of a stream. Raises what it ends with."""
    return "".join([output async for output in events(Source(*pieces), NO_CEILING)])


@pytest.mark.parametrize("last", [DONE, b"data:[DONE]\n\n", COMPLETED, MESSAGE_STOP, DONE.replace(b"\n", b"\r\n")])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_stream_with_its_last_event_is_whole(last: bytes, size: int) -> None:
    stream = DELTA + last
    pieces = [stream[begin : begin + size] for begin in range(0, len(stream), size)]
    assert await received(*pieces) == stream.replace(b"\r\n", b"\n").decode()


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        DONE[:-1],
        DONE[:-2],
        COMPLETED[:-1],
        b'event: response.completed\ndata: {"type": "respon',
        MESSAGE_STOP.partition(b"\n")[0] + b"\n",
        b'data: {"choices": [{"delta": {"content": "the end is\\ndata: [DONE]',
        b'data: {"choices": [{"delta": {"content": "data: [DONE]\\n\\n"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "event: message_stop\\n"}}]}\n\n',
        b": data: [DONE]\n\n",
        b"event: message_delta\ndata: message_stop\n\n",
    ],
)
async def test_stream_without_its_whole_last_event_is_cut(cut: bytes) -> None:
    with pytest.raises(AnswerCutOffError):
        await received(DELTA, cut)


async def test_what_came_before_an_error_goes_first() -> None:
    stream = events(Source(DELTA + b'data: {"error": {"message": "no"}}\n\n' + DONE), NO_CEILING)
    assert await anext(stream) == DELTA.decode()
    with pytest.raises(ErrorEvent) as raised:
        await anext(stream)
    assert raised.value.error.message == "no"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}, 400),
        ({"type": "error", "error": {"type": "not_found_error", "message": "no"}}, 404),
        ({"error": {"type": "BadRequestError", "message": "no", "code": 422}}, 422),
        ({"error": {"type": ["odd"], "message": "no"}}, 500),
    ],
)
def test_event_s_error_has_the_status_that_it_names_or_that_its_type_has(payload: dict[str, Any], code: int) -> None:
    assert from_payload(payload, 200).code == code


def test_word_in_place_of_a_code_is_kept() -> None:
    body = {"error": {"message": "no", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}}
    error = from_response(404, json.dumps(body).encode())
    assert (error.code, error.payload()) == (404, body)


@pytest.mark.parametrize("loc", [5, None, "body", {"a": 1}, ["body", 0, None]])
def test_odd_validation_detail_stays_a_422(loc: Any) -> None:
    error = from_response(422, json.dumps({"detail": [{"loc": loc, "msg": "odd"}, "x", 5]}).encode())
    assert error.code == 422
    assert "odd" in error.message


ERROR = JobError("it broke", code=503)


def test_error_on_a_chat_is_its_data() -> None:
    assert error_event(ERROR, "/v1/chat/completions") == f"data: {ERROR.as_json()}\n\n"
    assert error_event(ERROR, None) == f"data: {ERROR.as_json()}\n\n"


@pytest.mark.parametrize(
    ("code", "kind"), [(503, "overloaded_error"), (502, "api_error"), (400, "invalid_request_error")]
)
def test_error_on_messages_is_anthropic_s(code: int, kind: str) -> None:
    name, _, data = error_event(JobError("it broke", code=code), "/v1/messages").rstrip("\n").partition("\ndata: ")
    payload = json.loads(data)
    assert (name, payload["type"]) == ("event: error", "error")
    assert (payload["error"]["type"], payload["error"]["message"]) == (kind, "it broke")


def test_error_on_responses_is_openai_s_event_and_raises_in_its_sdk() -> None:
    name, _, data = error_event(ERROR, "/v1/responses").rstrip("\n").partition("\ndata: ")
    payload = json.loads(data)
    assert (name, payload["type"], payload["code"], payload["message"]) == ("event: error", "error", "503", "it broke")
    assert payload["error"]["message"] == "it broke"
