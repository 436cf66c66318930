"""Inputs as RunPod's console and the official workers' users send them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidInputError, RouteNotAllowedError
from gateway.request import build_request, path_of

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello World"}]

# input, fields of the chat besides the model
CHATS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "Hello World"}, {"messages": HELLO}),
    ({"prompt": "Hello World", "sampling_params": None}, {"messages": HELLO}),
    ({"prompt": "Hello World", "temperature": 0.5, "n": 2}, {"messages": HELLO, "temperature": 0.5, "n": 2}),
    (
        {"prompt": "Hello World", "sampling_params": {"max_tokens": 5, "top_k": 3, "stop": ["a"]}},
        {"messages": HELLO, "max_tokens": 5, "top_k": 3, "stop": ["a"]},
    ),
    (
        {"prompt": "Hello World", "sampling_params": {"max_new_tokens": 5, "min_new_tokens": 2}},
        {"messages": HELLO, "max_tokens": 5, "min_tokens": 2},
    ),
    ({"prompt": "Hello World", "sampling_params": {"logprobs": 2}}, {"logprobs": True, "top_logprobs": 2}),
    ({"prompt": "Hello World", "sampling_params": {"logprobs": True}}, {"logprobs": True}),
    (
        {"prompt": "Hello World", "sampling_params": {"include_stop_str_in_output": True}},
        {"no_stop_trim": True},
    ),
    (
        {"prompt": "Hello World", "sampling_params": {"json_schema": '{"type": "object"}'}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}},
            }
        },
    ),
    ({"prompt": "Hello World", "temperature": 1, "sampling_params": {"temperature": 1}}, {"temperature": 1}),
    ({"prompt": "Hello World", "apply_chat_template": True}, {"messages": HELLO}),
    ({"messages": HELLO, "sampling_params": {"max_new_tokens": 5}}, {"messages": HELLO, "max_tokens": 5}),
    ({"prompt": "Hello World", "model": "x"}, {"model": "x"}),
]

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ["a", "b"]}, "prompt", "send a job each, or an array as 'text'"),
    ({"prompt": 1}, "prompt", "'prompt' must be a string"),
    ({"prompt": None}, "prompt", "'prompt' must be a string"),
    ({"prompt": "a", "messages": HELLO}, "prompt", "only one of 'messages', 'prompt' can be given"),
    ({"prompt": "a", "text": "b"}, "text", "only one of 'prompt', 'text' can be given"),
    ({"prompt": "a", "openai_input": {}}, "openai_input", "not with 'prompt'"),
    ({"openai_route": CHAT, "prompt": "a"}, "prompt", "put 'prompt' inside 'openai_input'"),
    ({"prompt": "a", "sampling_params": [{"n": 1}]}, "sampling_params", "must be an object"),
    ({"prompt": "a", "temperature": 1, "sampling_params": {"temperature": 0}}, "sampling_params", "given twice"),
    ({"prompt": "a", "sampling_params": {"max_tokens": 1, "max_new_tokens": 2}}, "sampling_params", "second time"),
    ({"prompt": "a", "sampling_params": {"json_schema": "{"}}, "sampling_params", "must be a JSON schema"),
    ({"prompt": "a", "sampling_params": {"stream": True}}, "sampling_params", "goes beside 'sampling_params'"),
    ({"prompt": "a", "apply_chat_template": False}, "apply_chat_template", "to /v1/completions"),
    ({"route": 5}, "route", "'route' must be a path"),
    ({"route": "http://x/v1/models"}, "route", "'route' must be a plain path"),
    ({"route": CHAT, "body": "x"}, "body", "'body' must be a JSON object"),
    ({"route": CHAT, "body": {}, "method": "PATCH"}, "method", "'method' must be one of GET, POST, PUT, DELETE"),
    ({"route": CHAT, "openai_route": CHAT}, "route", "only one of 'openai_route', 'route' can be given"),
    ({"route": CHAT, "messages": HELLO}, "messages", "with 'route', put 'messages' inside 'body'"),
    ({"body": {"a": 1}}, "route", "'body' needs a 'route'"),
]


def built(job_input: dict[str, Any]) -> tuple[str, str, Any, bool]:
    request = build_request(job_input, served_model_name="glm-4.7-flash")
    return request.method, request.path, request.body and json.loads(request.body), request.stream


@pytest.mark.parametrize(("job_input", "fields"), CHATS)
def test_prompt_or_messages_with_sampling_parameters_is_a_chat(
    job_input: dict[str, Any], fields: dict[str, Any]
) -> None:
    method, path, body, stream = built(job_input)
    assert (method, path, stream) == ("POST", CHAT, False)
    assert body == {"model": "glm-4.7-flash", "messages": HELLO, **fields}
    assert path_of(job_input) == CHAT


def test_prompt_can_be_streamed() -> None:
    assert built({"prompt": "a", "stream": True})[3]


@pytest.mark.parametrize(
    ("job_input", "expected"),
    [
        ({"route": "/v1/models"}, ("GET", "/v1/models", None, False)),
        ({"route": "/v1/models", "method": "get"}, ("GET", "/v1/models", None, False)),
        (
            {"route": CHAT, "body": {"messages": HELLO, "stream": True}},
            ("POST", CHAT, {"messages": HELLO, "stream": True}, True),
        ),
        ({"route": "/generate", "body": {"text": "a"}, "method": "POST"}, ("POST", "/generate", {"text": "a"}, False)),
    ],
)
def test_route_of_the_worker_for_vllm_is_an_openai_route(job_input: dict[str, Any], expected: object) -> None:
    assert built(job_input) == expected
    assert path_of(job_input) == job_input["route"]


@pytest.mark.parametrize(("job_input", "param", "wrong"), REFUSED)
def test_refused_shorthand_names_its_own_field(job_input: dict[str, Any], param: str, wrong: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        build_request(job_input, served_model_name="glm-4.7-flash")
    assert wrong in refusal.value.message
    assert refusal.value.param == param


def test_closed_route_stays_closed() -> None:
    with pytest.raises(RouteNotAllowedError) as refusal:
        build_request({"route": "/flush_cache", "method": "POST"}, served_model_name="glm-4.7-flash")
    assert refusal.value.param == "route"
