"""Whatever shape an error comes in, it leaves in OpenAI's, without traces or paths."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import JobError
from gateway.errors import MAX_MESSAGE_CHARACTERS, InvalidInputError, from_payload, from_response, scrub

# status, body, (message, type, param, code)
RESPONSES: list[tuple[int, Any, tuple[str, str, str | None, int]]] = [
    (
        400,
        {"object": "error", "message": "m", "type": "BadRequestError", "param": "p", "code": 400},
        ("m", "invalid_request_error", "p", 400),
    ),
    (400, {"error": {"message": "m"}}, ("m", "invalid_request_error", None, 400)),
    (404, {"error": {"message": "m", "code": "model_not_found"}}, ("m", "not_found_error", None, 404)),
    (400, {"error": "m"}, ("m", "invalid_request_error", None, 400)),
    (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "m"}},
        ("m", "overloaded_error", None, 529),
    ),
    (404, {"detail": "Not Found"}, ("Not Found", "not_found_error", None, 404)),
    (
        422,
        {"detail": [{"loc": ["body", "a"], "msg": "x"}, {"msg": "y"}]},
        ("body.a: x; y", "invalid_request_error", None, 422),
    ),
    (401, "who are you", ("who are you", "authentication_error", None, 401)),
    (429, "", ("the engine answered with status 429 and no message", "rate_limit_error", None, 429)),
    (500, [], ("the engine answered with status 500 and no message", "server_error", None, 500)),
    (500, {"x": 1}, ("the engine answered with status 500 and no message", "server_error", None, 500)),
    (307, "", ("the engine answered with status 307 and no message", "server_error", None, 500)),
]


@pytest.mark.parametrize(("status", "body", "expected"), RESPONSES)
def test_response(status: int, body: Any, expected: tuple[str, str, str | None, int]) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    error = from_response(status, text.encode())
    assert (error.message, error.type, error.param, error.code) == expected


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"error": {"message": "m", "code": 400}}, 400),
        ({"error": {"message": "m", "code": 503}}, 503),
        ({"error": {"message": "m", "code": "bad"}}, 500),
        ({"error": {"message": "m", "code": 200}}, 500),
        ({"error": {"message": "m"}}, 500),
    ],
)
def test_event_of_a_stream_carries_its_own_code(payload: Any, code: int) -> None:
    assert from_payload(payload, 200).code == code


@pytest.mark.parametrize("kind", ["server_error", "insufficient_quota", "overloaded_error"])
def test_type_that_is_a_word_as_openai_s_is_kept(kind: str) -> None:
    assert from_payload({"error": {"message": "m", "type": kind}}, 400).type == kind


def test_bytes_that_are_not_text_are_still_an_error_in_json() -> None:
    error = json.loads(from_response(500, b"\xff\xfe" + b"[" * 100_000).as_json())["error"]
    assert error["message"].startswith("\ufffd\ufffd[[[")
    assert error["code"] == 500


def test_payload_has_openai_s_shape_and_its_characters_are_not_escaped() -> None:
    text = InvalidInputError("nö … \ud800", param="text").as_json()
    assert "nö … ?" in text
    assert "\\u" not in json.dumps({"error": text}, ensure_ascii=False)
    assert list(json.loads(text)["error"]) == ["message", "type", "param", "code"]


def test_error_without_more_is_the_worker_s_own() -> None:
    assert JobError("m").payload()["error"] == {"message": "m", "type": "server_error", "param": None, "code": 500}


SCRUBBED = [
    ("plain words", "plain words"),
    ('before\n\n  File "/a/b.py", line 3, in f\n    POST /v1/x [{...}]', "before"),
    (
        'Traceback (most recent call last):\n  File "/a/b.py", line 3, in f\n    g()\nValueError: too large',
        "ValueError: too large",
    ),
    ("no file /usr/lib/python3/x.py here", "no file <path> here"),
    ("in '/root/.cache/huggingface/hub/models--a--b'", "in '<path>'"),
    ("see file:///usr/lib/x", "see <path>"),
    ("~/models/x is missing", "<path> is missing"),
    ("POST /v1/chat/completions", "POST /v1/chat/completions"),
    ("see https://huggingface.co/zai-org/GLM-4.7-Flash", "see https://huggingface.co/zai-org/GLM-4.7-Flash"),
    ("model zai-org/GLM-4.7-Flash", "model zai-org/GLM-4.7-Flash"),
    ("1/2/3 and/or", "1/2/3 and/or"),
]


@pytest.mark.parametrize(("message", "expected"), SCRUBBED)
def test_scrub(message: str, expected: str) -> None:
    assert scrub(message) == expected


def test_message_that_quotes_megabytes_is_cut() -> None:
    assert len(scrub("x" * 5_000_000)) < MAX_MESSAGE_CHARACTERS + 20
