"""Every accepted shape of a job's input, and every refusal, as rows of tables."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import JobError
from gateway.errors import InvalidInputError, RequestTooLargeError, RouteNotAllowedError
from gateway.request import ACCEPTED, build_request
from gateway.routes import OPEN_ROUTES, open_path
from gateway.settings import DEFAULT_LIMITS

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, GENERATE = "/v1/chat/completions", "/generate"
NAMED = {"model": "glm-4.7-flash"}

# input, method, path, body, streamed
ACCEPTED_INPUTS: list[tuple[dict[str, Any], str, str, Any, bool]] = [
    ({"openai_route": "/v1/models"}, "GET", "/v1/models", None, False),
    ({"openai_route": "v1/models"}, "GET", "/v1/models", None, False),
    ({"openai_route": "/v1/models", "openai_input": None}, "GET", "/v1/models", None, False),
    ({"openai_route": "/v1/models", "openai_input": {}}, "GET", "/v1/models", None, False),
    ({"openai_route": "/v1/models/zai-org/GLM-4.7-Flash"}, "GET", "/v1/models/zai-org/GLM-4.7-Flash", None, False),
    ({"openai_route": "/health"}, "GET", "/health", None, False),
    ({"openai_route": CHAT, "openai_input": {"messages": HELLO}}, "POST", CHAT, {"messages": HELLO}, False),
    ({"openai_route": CHAT, "openai_input": {"stream": True}}, "POST", CHAT, {"stream": True}, True),
    ({"openai_route": CHAT, "openai_input": {"stream": False}}, "POST", CHAT, {"stream": False}, False),
    ({"openai_route": CHAT, "openai_input": {"stream": None}}, "POST", CHAT, {"stream": None}, False),
    ({"openai_route": GENERATE, "openai_input": {"text": "a"}}, "POST", GENERATE, {"text": "a"}, False),
    ({"messages": HELLO}, "POST", CHAT, {"messages": HELLO, **NAMED}, False),
    ({"messages": HELLO, "model": None}, "POST", CHAT, {"messages": HELLO, **NAMED}, False),
    ({"messages": HELLO, "model": "x"}, "POST", CHAT, {"messages": HELLO, "model": "x"}, False),
    ({"messages": HELLO, "stream": True}, "POST", CHAT, {"messages": HELLO, "stream": True, **NAMED}, True),
    ({"messages": HELLO, "top_p": 0.9}, "POST", CHAT, {"messages": HELLO, "top_p": 0.9, **NAMED}, False),
    ({"text": "a"}, "POST", GENERATE, {"text": "a"}, False),
    ({"text": ""}, "POST", GENERATE, {"text": ""}, False),
    ({"text": ["a", "b"]}, "POST", GENERATE, {"text": ["a", "b"]}, False),
    ({"text": "a", "sampling_params": {"n": 2}}, "POST", GENERATE, {"text": "a", "sampling_params": {"n": 2}}, False),
    ({"text": "a", "sampling_params": None}, "POST", GENERATE, {"text": "a", "sampling_params": None}, False),
    ({"input_ids": [1, 2]}, "POST", GENERATE, {"input_ids": [1, 2]}, False),
    ({"input_ids": [[1], [2]]}, "POST", GENERATE, {"input_ids": [[1], [2]]}, False),
    ({"input_ids": [1], "stream": True}, "POST", GENERATE, {"input_ids": [1], "stream": True}, True),
]

# input, field at fault, part of the message
REFUSED_INPUTS: list[tuple[Any, str, str]] = [
    (None, "input", "'input' must be a JSON object, not null"),
    ("hi", "input", "not a string"),
    ([], "input", "not an array"),
    (5, "input", "not a number"),
    (True, "input", "not a boolean"),
    ({}, "input", "no request in 'input'"),
    ({"inputs": "hi"}, "input", "no request in 'input'"),
    ({"openai_input": {"a": 1}}, "openai_route", "'openai_input' needs an 'openai_route'"),
    ({"messages": HELLO, "text": "a"}, "text", "only one of 'messages', 'text'"),
    ({"text": "a", "input_ids": [1]}, "input_ids", "only one of 'text', 'input_ids'"),
    ({"messages": HELLO, "openai_input": {}}, "openai_input", "goes with 'openai_route'"),
    ({"openai_route": CHAT, "messages": HELLO}, "messages", "put 'messages' inside 'openai_input'"),
    ({"openai_route": CHAT, "stream": True, "model": "x"}, "model", "put 'model', 'stream' inside 'openai_input'"),
    ({"openai_route": CHAT, "openai_input": "{}"}, "openai_input", "must be a JSON object, not a string"),
    ({"openai_route": CHAT, "openai_input": []}, "openai_input", "must be a JSON object, not an array"),
    ({"openai_route": CHAT, "openai_input": {"stream": 2}}, "stream", "'stream' must be true or false, not a number"),
    ({"openai_route": None}, "openai_route", "must be a path"),
    ({"openai_route": ""}, "openai_route", "must be a path"),
    ({"messages": []}, "messages", "must be a non-empty array"),
    ({"messages": {}}, "messages", "must be a non-empty array"),
    ({"messages": ["hi"]}, "messages", "'messages[0]' must be an object with a 'role'"),
    ({"messages": [*HELLO, {"role": 1}]}, "messages", "'messages[1]' must be an object with a 'role'"),
    ({"messages": HELLO, "model": 1}, "model", "'model' must be a string, not a number"),
    ({"messages": HELLO, "stream": "maybe"}, "stream", "'stream' must be true or false, not a string"),
    ({"text": None}, "text", "'text' must be a string"),
    ({"text": []}, "text", "'text' must be a string"),
    ({"text": ["a", 1]}, "text", "'text' must be a string"),
    ({"input_ids": []}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"input_ids": "1"}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"input_ids": [1, "2"]}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"input_ids": [True]}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"input_ids": [[1], []]}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"input_ids": [[[1]]]}, "input_ids", "'input_ids' must be a non-empty array"),
    ({"text": "a", "sampling_params": []}, "sampling_params", "'sampling_params' must be an object"),
    ({"text": "a", "sampling_params": "x"}, "sampling_params", "'sampling_params' must be an object"),
    ({"text": "\udc00"}, "input", "half of a surrogate pair"),
    ({"text": "a", "x": float("nan")}, "input", "NaN and Infinity"),
    ({"text": "a", "x": float("inf")}, "input", "NaN and Infinity"),
]

BAD_ROUTES = [
    "http://example.com/v1/models",
    "//example.com/v1/models",
    "@example.com/v1/models",
    "/v1/models?x=1",
    "/v1/models#x",
    "/v1/../flush_cache",
    "/v1/./models",
    "/..",
    "/v1/%2e%2e/flush_cache",
    "/v1\\models",
    "/v1/models\n",
    "/v1/models\x00",
    "/v1/ models",
    "/v1//models",
    "/v1/models/",
    "/",
    "/v1/módels",
    "/v1/\ud800",
]

FORBIDDEN_ROUTES = [
    "/flush_cache",
    "/server_info",
    "/get_server_info",
    "/metrics",
    "/v2/x",
    "/V1/models",
    "/v1",
    "abort_request",
]


@pytest.mark.parametrize(("job_input", "method", "path", "body", "stream"), ACCEPTED_INPUTS)
def test_accepted_input(job_input: dict[str, Any], method: str, path: str, body: Any, stream: bool) -> None:
    request = build_request(job_input, served_model_name="glm-4.7-flash")
    assert (request.method, request.path, request.stream) == (method, path, stream)
    assert (None if request.body is None else json.loads(request.body)) == body


@pytest.mark.parametrize(("job_input", "param", "wrong"), REFUSED_INPUTS)
def test_refused_input(job_input: Any, param: str, wrong: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        build_request(job_input, served_model_name="glm-4.7-flash")
    assert wrong in refusal.value.message
    assert ACCEPTED in refusal.value.message
    assert (refusal.value.param, refusal.value.code) == (param, 400)


@pytest.mark.parametrize("route", BAD_ROUTES)
def test_route_that_is_no_plain_path(route: str) -> None:
    with pytest.raises(InvalidInputError, match="must be a plain path") as refusal:
        build_request({"openai_route": route}, served_model_name="x")
    refusal.value.as_json().encode()


@pytest.mark.parametrize("route", FORBIDDEN_ROUTES)
def test_route_that_is_not_open(route: str) -> None:
    with pytest.raises(RouteNotAllowedError, match="not open to clients") as refusal:
        build_request({"openai_route": route}, served_model_name="x")
    assert refusal.value.code == 403


def test_nesting_bomb_is_refused() -> None:
    bomb: dict[str, Any] = {}
    for _ in range(200_000):
        bomb = {"a": bomb}
    with pytest.raises(InvalidInputError, match="nested too deeply"):
        build_request({"text": "a", "bomb": bomb}, served_model_name="x")


def test_input_is_left_as_it_came() -> None:
    job_input = {"messages": HELLO}
    build_request(job_input, served_model_name="x")
    assert job_input == {"messages": HELLO}


@pytest.mark.parametrize(
    ("job_input", "accepted"),
    [
        ({"text": "a", "sampling_params": {"n": 4}}, True),
        ({"text": "a", "sampling_params": {"n": 5}}, False),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 5}]}, False),
        ({"messages": HELLO, "n": 4}, True),
        ({"messages": HELLO, "n": 5}, False),
        ({"messages": HELLO, "n": 1e300}, False),
        ({"openai_route": CHAT, "openai_input": {"messages": HELLO, "n": 5}}, False),
        ({"messages": HELLO, "n": "many"}, True),  # the engine says what is wrong with it
    ],
)
def test_number_of_answers_is_limited(job_input: dict[str, Any], accepted: bool) -> None:
    if accepted:
        build_request(job_input, served_model_name="x", limits=replace(DEFAULT_LIMITS, n=4))
        return
    with pytest.raises(InvalidInputError, match=r"'n' may be up to 4 \(MAX_N\)") as refusal:
        build_request(job_input, served_model_name="x", limits=replace(DEFAULT_LIMITS, n=4))
    assert refusal.value.param == "n"


@pytest.mark.parametrize(("levels", "accepted"), [(5, True), (6, False)])
def test_nesting_is_limited(levels: int, accepted: bool) -> None:
    value: Any = 1
    for _ in range(levels - 1):  # the input itself is the first level
        value = [value]
    job_input = {"text": "a", "x": value, "y": [[1], [2], [3]]}
    if accepted:
        build_request(job_input, served_model_name="x", limits=replace(DEFAULT_LIMITS, json_depth=5))
        return
    with pytest.raises(InvalidInputError, match=r"up to 5 levels are accepted \(MAX_JSON_DEPTH\)"):
        build_request(job_input, served_model_name="x", limits=replace(DEFAULT_LIMITS, json_depth=5))


def test_size_is_limited() -> None:
    limits = replace(DEFAULT_LIMITS, request_bytes=100)
    size = len(build_request({"text": "é" * 40}, served_model_name="x", limits=limits).body or b"")
    assert size == 91
    with pytest.raises(
        RequestTooLargeError, match=r"is 111 bytes; up to 100 are accepted \(MAX_REQUEST_BYTES\)"
    ) as told:
        build_request({"text": "é" * 50}, served_model_name="x", limits=limits)
    assert told.value.code == 413


def test_allowed_route_is_open_exactly() -> None:
    allowed = frozenset({"/server_info"})
    request = build_request({"openai_route": "server_info"}, served_model_name="x", allowed_routes=allowed)
    assert (request.method, request.path) == ("GET", "/server_info")
    for route in ("/server_info/x", "/Server_info", "/server"):
        with pytest.raises(RouteNotAllowedError):
            build_request({"openai_route": route}, served_model_name="x", allowed_routes=allowed)
    with pytest.raises(InvalidInputError):
        build_request({"openai_route": "/server_info/"}, served_model_name="x", allowed_routes=allowed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
FIELDS = [
    "openai_route",
    "prompt",
    "route",
    "body",
    "method",
    "openai_input",
    "messages",
    "text",
    "input_ids",
    "sampling_params",
    "model",
    "stream",
    "n",
]
routes = st.text(alphabet="/\\.:@?#%&;= \n\x00\t2efvV1hostcalé\u2024\uff0f", max_size=30) | st.sampled_from(
    [*BAD_ROUTES, *FORBIDDEN_ROUTES, CHAT]
)
job_inputs = (
    json_values
    | st.dictionaries(st.sampled_from(FIELDS), json_values | routes, max_size=4)
    | st.builds(lambda route, body: {"openai_route": route, "openai_input": body}, routes, json_values)
    | st.builds(lambda role, content: {"messages": [{"role": role, "content": content}]}, st.text(), json_values)
)


@settings(max_examples=250)  # of each run; another 250 in the next
@given(job_inputs)
def test_any_input_is_a_request_to_an_open_path_or_a_refusal(job_input: Any) -> None:
    refused: JobError | None = None
    try:
        request = build_request(job_input, served_model_name="x")
    except JobError as error:
        refused = error
    if refused is not None:
        assert refused.code in (400, 403, 413)
        refused.as_json().encode()
        return
    assert request.path in OPEN_ROUTES or request.path.startswith("/v1/")
    assert request.method == ("POST" if request.body else "GET")
    if request.body:
        json.loads(request.body)


ENGINE = httpx.Client(base_url="http://127.0.0.1:30000")


@settings(max_examples=500)
@given(routes)
def test_what_is_checked_of_a_route_is_what_is_sent(route: str) -> None:
    try:
        path = open_path(route, frozenset({"/server_info"}))
    except JobError:
        return
    url = ENGINE.build_request("POST", path).url
    assert (url.host, url.port, url.query, url.fragment, url.userinfo) == ("127.0.0.1", 30000, b"", "", b"")
    assert url.raw_path == path.encode()
    assert route in (path, path[1:])
