"""How a job's input says more than a path and a body: its method, its query, its token ids."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import InvalidInputError
from gateway.request import TokenIds, build_request, path_of

CHAT, CANCEL = "/v1/chat/completions", "/v1/responses/resp_1/cancel"


def built(**job_input: Any) -> Any:
    return build_request(job_input, served_model_name="glm-4.7-flash")


@pytest.mark.parametrize(
    ("job_input", "method", "body"),
    [
        ({"openai_route": "/v1/models"}, "GET", None),
        ({"openai_route": "/v1/models", "openai_input": None}, "GET", None),
        ({"openai_route": "/v1/models", "openai_input": {}}, "GET", None),
        ({"openai_route": "/v1/responses/resp_1", "openai_input": {}}, "GET", None),
        ({"openai_route": "/health", "openai_input": {}}, "GET", None),
        ({"openai_route": CHAT, "openai_input": {}}, "POST", b"{}"),
        ({"openai_route": "/generate", "openai_input": {}}, "POST", b"{}"),
        ({"openai_route": CHAT}, "GET", None),
        ({"openai_route": CHAT, "openai_input": None}, "GET", None),
        ({"openai_route": CANCEL}, "POST", None),
        ({"openai_route": CANCEL, "openai_input": {}}, "POST", b"{}"),
        ({"openai_route": CHAT, "openai_method": "POST"}, "POST", None),
        ({"openai_route": "/v1/models", "openai_input": {}, "openai_method": "POST"}, "POST", b"{}"),
        ({"openai_route": "/v1/x", "openai_input": {"a": 1}, "openai_method": "PUT"}, "PUT", b'{"a":1}'),
        ({"openai_route": "/v1/x", "openai_method": "DELETE"}, "DELETE", None),
        ({"openai_route": "/v1/x", "openai_input": {"a": 1}, "openai_method": "GET"}, "GET", None),
    ],
)
def test_method(job_input: dict[str, Any], method: str, body: bytes | None) -> None:
    request = built(**job_input)
    assert (request.method, request.body) == (method, body)


@pytest.mark.parametrize("method", ["HEAD", "get", "CONNECT", 5, ""])
def test_other_methods_are_refused(method: Any) -> None:
    with pytest.raises(InvalidInputError, match="'openai_method' must be one of GET, POST, PUT, DELETE"):
        built(openai_route=CHAT, openai_method=method)


@pytest.mark.parametrize("query", ["", "limit=5", "a=b&c=%20d", "x=/v1/?@:"])
def test_query_is_passed_on(query: str) -> None:
    assert built(openai_route="/v1/models", openai_query=query).query == query


@pytest.mark.parametrize("query", ["a b", "a#b", "a\r\nX: 1", "ö", "%", "%zz", 5, "x" * 4097])
def test_query_that_is_not_one_is_refused(query: Any) -> None:
    with pytest.raises(InvalidInputError, match="'openai_query' must be the query of a URL"):
        built(openai_route="/v1/models", openai_query=query)


@pytest.mark.parametrize("stream", ["true", "True", "1", "yes", "on", "t", "Y", 1])
def test_stream_in_the_words_that_sglang_takes(stream: Any) -> None:
    request = built(openai_route=CHAT, openai_input={"messages": [], "stream": stream})
    assert request.stream
    assert not built(openai_route=CHAT, openai_input={"messages": [], "stream": "false"}).stream


@pytest.mark.parametrize(
    ("job_input", "ids"),
    [
        ({"input_ids": [3, 1, 2]}, TokenIds("input_ids", 1, 3)),
        ({"input_ids": [[3], [-1, 2]]}, TokenIds("input_ids", -1, 3)),
        ({"text": "a"}, None),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": [99999]}}, TokenIds("prompt", 99999, 99999)),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": [[1], [2]]}}, TokenIds("prompt", 1, 2)),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": ["a"]}}, None),
        ({"openai_route": "/v1/embeddings", "openai_input": {"input": [7, 8]}}, TokenIds("input", 7, 8)),
    ],
)
def test_span_of_the_token_ids(job_input: dict[str, Any], ids: TokenIds | None) -> None:
    assert built(**job_input).token_ids == ids


@pytest.mark.parametrize(
    ("job_input", "path"),
    [
        ({"messages": []}, CHAT),
        ({"text": "a"}, "/generate"),
        ({"openai_route": "v1/messages"}, "/v1/messages"),
        ({"openai_route": 5}, None),
        (None, None),
    ],
)
def test_path_of_any_input(job_input: Any, path: str | None) -> None:
    assert path_of(job_input) == path
