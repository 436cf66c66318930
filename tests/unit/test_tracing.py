"""A job's trace context goes to the engine as headers, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.request import build_request
from gateway.tracing import take_trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HELLO = [{"role": "user", "content": "Hello"}]
BODY_TYPE = (b"Content-Type", b"application/json")
TRACED = (b"traceparent", PARENT.encode())


def metadata(**members: Any) -> dict[str, Any]:
    return {"metadata": {"traceparent": PARENT, **members}}


@pytest.mark.parametrize(
    "job_input",
    [
        {"messages": HELLO, **metadata()},
        {"prompt": "Hello", **metadata()},
        {"text": "Hello", **metadata()},
        {"openai_route": "/v1/chat/completions", "openai_input": {"messages": HELLO}, **metadata()},
    ],
)
def test_trace_context_beside_every_kind_of_request_becomes_a_header(job_input: dict[str, Any]) -> None:
    request = build_request(job_input, served_model_name="m")
    assert request.headers == (BODY_TYPE, TRACED)
    assert "metadata" not in json.loads(request.body or b"")
    assert "metadata" in job_input, "the input itself is left alone"


def test_request_without_a_body_has_the_trace_context_alone() -> None:
    assert build_request({"openai_route": "/v1/models", **metadata()}, served_model_name="m").headers == (TRACED,)


def test_other_metadata_stays_in_the_request() -> None:
    request = build_request({"messages": HELLO, **metadata(user="u", tracestate="a=1")}, served_model_name="m")
    assert json.loads(request.body or b"")["metadata"] == {"user": "u"}
    assert request.headers == (BODY_TYPE, TRACED, (b"tracestate", b"a=1"))


@pytest.mark.parametrize(
    "parent",
    [
        None,
        1,
        "",
        PARENT.upper(),
        PARENT + "\r\nhost: x",
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        "00-abc-def-01",
    ],
)
def test_what_is_not_a_trace_context_is_dropped_with_its_state(parent: Any) -> None:
    job_input = {"messages": HELLO, "metadata": {"traceparent": parent, "tracestate": "a=1"}}
    assert take_trace(job_input) == ({"messages": HELLO}, ())


@pytest.mark.parametrize("state", [1, "", "a=1\n", "a" * 513, "ä"])
def test_state_that_no_header_can_carry_is_dropped(state: Any) -> None:
    assert take_trace(metadata(tracestate=state)) == ({}, (TRACED,))


@pytest.mark.parametrize("job_input", [None, [], "text", {}, {"metadata": 1}, {"metadata": {"user": "u"}}])
def test_input_without_a_trace_context_is_the_same(job_input: Any) -> None:
    assert take_trace(job_input) == (job_input, ())
