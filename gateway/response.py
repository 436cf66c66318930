"""What the engine answers: a stream of events, batched, or one JSON answer; and failures that look like either."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from common.errors import AnswerCutOffError, JobError
from common.masking import Mask
from gateway import sse
from gateway.errors import from_payload, presentable_body
from gateway.pacing import Pacer
from gateway.sse import EVENT_END

Output = str | dict[str, Any] | list[Any]
"""One output of a job: a string of whole SSE events, a parsed JSON answer, or `{"error": "<JSON>"}` as the last."""

# The last events of the streams that do not end with `[DONE]`, by their types: Anthropic's `/v1/messages` and OpenAI's
# `/v1/responses`.
_LAST_TYPES = frozenset(
    {b"message_stop", b"response.completed", b"response.incomplete", b"response.failed", b"response.cancelled"}
)


class LastEvents(str):
    """The output that ends a complete stream."""

    __slots__ = ()


class ErrorEvent(Exception):
    """The engine reported an error inside its stream."""

    def __init__(self, error: JobError) -> None:
        super().__init__()
        self.error = error


async def events(
    chunks: sse.Chunks, pacer: Pacer, seen: Callable[[bytes], None] = lambda _: None
) -> AsyncGenerator[str, None]:
    """The stream's events, batched at the pacer's pace; the last batch of a complete stream is a LastEvents.

    Raises ErrorEvent for an error among them, and AnswerCutOffError for a stream that ends early, that is, without the
    event that ends every complete stream. An incomplete event is dropped. seen: called with each batch.
    """
    async with aclosing(sse.batches(chunks, pacer=pacer)) as batches:
        async for data in batches:
            seen(data)
            # JSON escapes quotes inside text, so these bytes are always one of the engine's own keys or values.
            if b'"error"' in data or b'"abort"' in data:
                begin = 0
                for event in data.split(EVENT_END):
                    if error := _error_in(event):
                        if begin:
                            yield _text(data[:begin])
                        raise error
                    begin += len(event) + len(EVENT_END)
            if _is_complete(data):
                yield LastEvents(_text(data))
                return  # if the connection breaks after the last event, nothing is lost
            yield _text(data)
    raise AnswerCutOffError("the engine's stream ended before the answer was complete")


async def raw_events(chunks: sse.Chunks, mask: Mask, engine_is_lost: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """The stream as it is, in blocks of whole events, each as soon as it is there.

    An error event of the engine's own is passed on, without secrets and internals. Raises ErrorEvent for a generation
    that the engine aborted, and for any error once the engine is lost; AnswerCutOffError for a stream that ends early.
    """
    framer, last = sse.EventFramer(), b""
    try:
        async for chunk in chunks:
            if not (block := framer.feed(chunk)):
                continue
            if b'"error"' in block or b'"abort"' in block:
                block, aborted = _checked(block, mask, engine_is_lost)
                if block:
                    yield block
                if aborted is not None:
                    raise aborted
            else:
                yield block
            last = block
    except ErrorEvent:
        raise
    except Exception:
        if not _has_ended(last):  # if the connection breaks after the last event, nothing is lost
            raise
    if not _has_ended(last):
        raise AnswerCutOffError("the engine's stream ended before the answer was complete")


def _checked(block: bytes, mask: Mask, engine_is_lost: Callable[[], bool]) -> tuple[bytes, ErrorEvent | None]:
    """The part of a block that may be passed on, and the error at which the stream ends there."""
    kept: list[bytes] = []
    for event in block.removesuffix(EVENT_END).split(EVENT_END):
        if (error := _error_in(event)) is None:
            kept.append(event + EVENT_END)
            continue
        if isinstance(error.error, AnswerCutOffError) or engine_is_lost():
            return b"".join(kept), error
        kept.append(_presentable(event, mask) + EVENT_END)
    return b"".join(kept), None


def _presentable(event: bytes, mask: Mask) -> bytes:
    return b"\n".join(
        b"data: " + presentable_body(line.removeprefix(b"data:").strip(), mask) if line.startswith(b"data:") else line
        for line in event.split(b"\n")
    )


def _has_ended(events: bytes) -> bool:
    """Whether the last events of a stream end it: a last event, or an error of the engine's own."""
    return _is_complete(events) or (
        b'"error"' in events and any(_error_in(event) is not None for event in events.split(EVENT_END))
    )


def check_complete(body: bytes, content_type: str) -> None:
    """Raises AnswerCutOffError if a whole answer says that the engine aborted it."""
    if b'"abort"' in body and content_type.startswith("application/json"):
        parsed(body, is_json=True)


def _is_complete(events: bytes) -> bool:
    """Whether one of the events is the last of a stream. Only fields count: text inside an event may say anything."""
    if b"[DONE]" not in events and b"event:" not in events:
        return False  # as it nearly always is
    return any(
        value == b"[DONE]" if name == b"data" else name == b"event" and value in _LAST_TYPES
        for event in events.split(EVENT_END)
        for name, value in _fields(event)
    )


def _fields(event: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The fields of an event, one per line: https://html.spec.whatwg.org/#event-stream-interpretation."""
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        yield name, value.removeprefix(b" ")


def _error_in(event: bytes) -> ErrorEvent | None:
    """The error that an event reports: an `error` object, or a generation that the engine aborted."""
    try:
        payload = json.loads(b"\n".join(value for name, value in _fields(event) if name == b"data"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict):
        return None
    if payload.get("error"):
        return ErrorEvent(from_payload(payload, HTTPStatus.OK))
    if aborted := _aborted(payload):
        return ErrorEvent(aborted)
    return None


def _aborted(answer: dict[str, Any]) -> AnswerCutOffError | None:
    """The error for a generation that the engine aborted: it ends like a short answer, but is not one."""
    choices = answer.get("choices")
    endings = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    if isinstance(meta := answer.get("meta_info"), dict) and isinstance(reason := meta.get("finish_reason"), dict):
        endings.append(reason.get("type"))
    return AnswerCutOffError("the engine aborted the generation before it was complete") if "abort" in endings else None


def parsed(body: bytes, *, is_json: bool) -> Output:
    """An unstreamed answer: parsed if it is JSON; else its text, or `{}` if it is empty (`/health`).

    Raises AnswerCutOffError for JSON that does not parse, UpstreamError for an error sent as a successful answer.
    """
    text = body.decode("utf-8", "replace")
    if not is_json:
        return text or {}
    try:
        answer: Output = json.loads(text, parse_constant=lambda _: None)  # NaN would make the output invalid JSON
    except ValueError:
        raise AnswerCutOffError("the engine's answer is incomplete: it is not valid JSON") from None
    if "\\ud" in text.lower():
        # An escaped half of a surrogate pair cannot be sent on as UTF-8.
        answer = json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    if isinstance(answer, dict) and answer.get("error"):
        raise from_payload(answer, HTTPStatus.OK)
    for part in answer if isinstance(answer, list) else [answer]:  # a list answers a batch of prompts
        if isinstance(part, dict) and (aborted := _aborted(part)):
            raise aborted
    return answer


def _text(events: bytes) -> str:
    return events.decode("utf-8", "replace")
