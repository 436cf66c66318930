"""Tokens and the reason of the end, from an answer's last events or its whole JSON, in every shape that SGLang has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.job_record import FIELDS, JobRecord, Outcome, observers
from gateway import usage
from gateway.usage import Watch, note_usage

KNOWN = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "finish_reason")


def known(record: JobRecord) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in KNOWN)


def event(value: Any, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(value)}\n\n".encode()


def named(name: str, **members: Any) -> bytes:
    return event({"type": name, **members}, name)


def ended(reason: str) -> bytes:
    return event({"choices": [{"delta": {}, "finish_reason": reason}]})


DONE = b"data: [DONE]\n\n"
WORD = event({"choices": [{"index": 0, "delta": {"content": "data: \n\n{"}, "finish_reason": None}]})
CHAT_USAGE = {
    "prompt_tokens": 9,
    "total_tokens": 17,
    "completion_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 4},
    "reasoning_tokens": 3,
    "completion_tokens_details": {"reasoning_tokens": 3},
}
MESSAGE_START = {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 0}
RESPONSE = {
    "object": "response",
    "status": "completed",
    "usage": {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
    },
}
META = {"finish_reason": {"type": "stop", "matched": "a secret"}, "prompt_tokens": 4, "completion_tokens": 5}
META |= {"cached_tokens": 3, "reasoning_tokens": 0}

# The events of a stream, as SGLang 0.5.23 sends them (shortened), and what is known after the last.
STREAMS: dict[str, tuple[list[bytes], tuple[Any, ...]]] = {
    "chat with usage": (
        [
            WORD,
            WORD,
            event({"choices": [{"delta": {}, "finish_reason": "length"}]}),
            event({"choices": [], "usage": CHAT_USAGE}),
            DONE,
        ],
        (9, 4, 8, 3, "length"),
    ),
    "chat without": (
        [WORD, ended("tool_calls"), DONE],
        (None, None, None, None, "tool_calls"),
    ),
    "completions": (
        [
            event({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": None}),
            event({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 4, "reasoning_tokens": 0}}),
            DONE,
        ],
        (4, None, 4, 0, "stop"),
    ),
    "generate": (
        [
            event({"text": "a", "meta_info": {**META, "completion_tokens": 1, "finish_reason": None}}),
            event({"text": "ab", "meta_info": META}),
            DONE,
        ],
        (4, 3, 5, 0, "stop"),
    ),
    "messages": (
        [
            event(
                {
                    "type": "message_start",
                    "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 4, "output_tokens": 0}},
                },
                "message_start",
            ),
            *(
                20
                * [
                    event(
                        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
                        "content_block_delta",
                    )
                ]
            ),
            event(
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 8}},
                "message_delta",
            ),
            event({"type": "message_stop"}, "message_stop"),
        ],
        (9, 4, 8, None, "end_turn"),
    ),
    "responses": (
        [
            named("response.created", response={"object": "response", "usage": None}),
            named("response.completed", response=RESPONSE),
        ],
        (7, 2, 3, 1, "completed"),
    ),
    "cut off": ([WORD, WORD], (None, None, None, None, None)),
    "nothing to read": ([b"data: {\n\n", b": a comment\n\n", b"data: [1, null]\n\n"], (None, None, None, None, None)),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_last_events_tell_tokens_and_reason_however_they_are_batched(name: str, batch_size: int) -> None:
    events, expected = STREAMS[name]
    record = JobRecord("j")
    watch = Watch(record)
    for begin in range(0, len(events), batch_size):
        watch.events(b"".join(events[begin : begin + batch_size]))
    watch.end_of_events()
    assert known(record) == expected
    assert record.bytes == sum(map(len, events))
    assert record.first_token_seconds is not None


def test_only_the_last_events_of_a_long_stream_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = usage._payload
    monkeypatch.setattr(usage, "_payload", lambda event: parsed.append(event) or real(event))  # type: ignore[func-returns-value]
    watch = Watch(JobRecord("j"))
    for _ in range(1000):
        watch.events(WORD)
    watch.events(WORD * 5000)
    watch.end_of_events()
    assert len(parsed) <= usage._LAST_EVENTS + 2


def test_events_that_say_nothing_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = usage._payload
    monkeypatch.setattr(usage, "_payload", lambda event: parsed.append(event) or real(event))  # type: ignore[func-returns-value]
    said = [WORD, ended("stop"), event({"choices": [], "usage": CHAT_USAGE}), DONE]
    watch = Watch(JobRecord("j"))
    watch.events(b"".join(said))
    watch.end_of_events()
    assert [f"{one.decode()}\n\n".encode() for one in parsed] == [said[2], said[1]]


def test_stream_without_an_event_tells_nothing() -> None:
    record = JobRecord("j")
    Watch(record).end_of_events()
    assert known(record) == (None,) * 5
    assert record.bytes is None


WHOLE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "chat": ({"choices": [{"finish_reason": "stop"}], "usage": CHAT_USAGE}, (9, 4, 8, 3, "stop")),
    "chat without a cache report": (
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": None}},
        (9, None, 8, None, None),
    ),
    "generate": ({"text": "", "meta_info": META}, (4, 3, 5, 0, "stop")),
    "many prompts": ([{"meta_info": META}, {"meta_info": META}], (8, 6, 10, 0, "stop")),
    "embeddings": ({"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, None, None, None, None)),
    "messages": (
        {"type": "message", "stop_reason": "max_tokens", "usage": {"input_tokens": 9, "output_tokens": 8}},
        (9, None, 8, None, "max_tokens"),
    ),
    "incomplete response": (
        {"object": "response", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        (None, None, None, None, "max_output_tokens"),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answer_tells_tokens_and_reason(name: str) -> None:
    record = JobRecord("j")
    answer, expected = WHOLE[name]
    Watch(record).whole(12, answer)
    assert known(record) == expected
    assert record.bytes == 12


HOSTILE: list[Any] = [
    None,
    5,
    "text",
    [],
    [None, 1, {"meta_info": 1}],
    {"usage": [], "choices": "abc"},
    {"usage": {"prompt_tokens": "9", "completion_tokens": -1, "cached_tokens": True}},
    {"choices": [1, None, {"finish_reason": "what the user said"}], "response": 1, "message": "text"},
    {"choices": [{"finish_reason": {"type": ["a"]}}], "delta": [], "stop_reason": "x" * 100},
]


@pytest.mark.parametrize("answer", HOSTILE)
def test_what_is_no_number_or_no_word_stays_unknown(answer: Any) -> None:
    record = JobRecord("j")
    note_usage(record, answer)
    assert known(record) == (None,) * 5


def test_record_ends_once_and_has_exactly_the_fields_of_its_line() -> None:
    ended: list[JobRecord] = []
    observers.append(ended.append)
    try:
        record = JobRecord.begin("j")
        record.code = 400
        record.end(Outcome.FAILED)
        record.end(Outcome.COMPLETED, 200)
    finally:
        observers.remove(ended.append)
    assert ended == [record]
    assert tuple(record.fields()) == FIELDS
    assert (record.fields()["outcome"], record.fields()["code"], record.fields()["route"]) == ("failed", 400, None)
