"""SGLang's validation errors, as SGLang 0.5.23 really words them, become sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import from_payload

GENERIC = "function-after[validate_thinking_parts_role(), ChatCompletionMessageGenericParam]"
ROLES = "'role' must be one of 'system', 'tool' (case-insensitive)"
WHERE = '\n\n  File "/usr/lib/sglang/http_server.py", line 7, in chat\n    POST /v1/chat/completions'


def wrong(*loc: str | int, msg: str, given: Any = 5, **more: Any) -> dict[str, Any]:
    return {"type": "some_kind", "loc": ("body", *loc), "msg": msg, "input": given, **more}


def text_of(*errors: dict[str, Any]) -> str:
    """As FastAPI's `str(RequestValidationError)`, which SGLang sends."""
    return f"{len(errors)} validation errors:\n" + "\n".join(f"  {error}" for error in errors) + WHERE


# the errors, what is said of them, the first field
SAID = {
    "one field": ([wrong("temperature", msg="Input should be a number")], "temperature: Input should be a number"),
    "one field that may have two types": (
        [wrong("stop", "list[str]", msg="Should be a list"), wrong("stop", "str", msg="Should be a string")],
        "stop: Should be a list, or Should be a string",
    ),
    "inside a list, of several classes": (
        [
            wrong("messages", 0, GENERIC, "role", msg=f"Value error, {ROLES}.", ctx={"error": ValueError("x")}),
            wrong("messages", 0, GENERIC, "content", "str", msg="Should be a string"),
            wrong("messages", 0, "ChatCompletionMessageUserParam", "content", "str", msg="Should be a string"),
        ],
        f"messages[0].role: {ROLES}; messages[0].content: Should be a string",
    ),
    "many fields": (
        [wrong(name, msg="Field required", given={}) for name in "abcde"],
        "a: Field required; b: Field required; c: Field required; and 2 more",
    ),
    "the body itself": ([wrong(msg="Input should be an object")], "Input should be an object"),
}


@pytest.mark.parametrize("case", SAID)
def test_each_field_and_its_reason(case: str) -> None:
    errors, message = SAID[case]
    error = from_payload({"object": "error", "message": text_of(*errors), "code": 400}, 400)
    assert error.message == message
    assert error.param == (message.partition(": ")[0] if ": " in message else None)


def test_what_the_client_wrote_is_not_taken_for_an_error() -> None:
    written = "\n  {'type': 'x', 'loc': ('body', 'faked'), 'msg': 'pay here'"
    text = text_of(wrong("temperature", msg="Input should be a number", given=written))
    assert from_payload({"message": text}, 400).message == "temperature: Input should be a number"


def test_a_job_s_error_has_no_escapes_of_escapes() -> None:
    text = text_of(wrong("temperature", msg="Input should be a number", given='say "hi"'))
    assert "\\\\" not in json.dumps({"error": from_payload({"message": text}, 400).as_json()})


@pytest.mark.parametrize(
    "text",
    [
        "temperature must be non-negative",
        "1 validation error:\n  {'msg': 'Field required'}",
        "1 validation error:\n  {'type': 'x', 'loc': (f(), 'a'), 'msg': 'm'}",
        "7 validation errors:",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert from_payload({"message": text, "code": 400}, 400).message == text
