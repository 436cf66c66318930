"""What the engine answers: a stream of events, batched, or one JSON answer; and the failures in the guise of either."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from common.errors import AnswerCutOffError, JobError
from gateway import sse
from gateway.errors import from_payload
from gateway.sse import EVENT_END

Output = str | dict[str, Any] | list[Any]
"""One output of a job: a string of whole SSE events, a parsed JSON answer, or `{"error": "<JSON>"}` as the last."""

DONE = b"data: [DONE]\n\n"
# The last events of the streams that do not end with `[DONE]`: Anthropic's `/v1/messages` and OpenAI's `/v1/responses`.
_LAST_EVENTS = (
    b"event: message_stop\n",
    b"event: response.completed\n",
    b"event: response.incomplete\n",
    b"event: response.failed\n",
    b"event: response.cancelled\n",
)


class ErrorEvent(Exception):
    """The engine reported an error inside its stream.

    head, fields: what the event had beside its error, as in Anthropic's protocol: the line `event: error`, a `type`.
    """

    def __init__(self, error: JobError, *, head: bytes = b"", fields: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.error = error
        self.head = head
        self.fields = fields


async def events(chunks: AsyncIterator[bytes], pacer: sse.Pacer) -> AsyncGenerator[str, None]:
    """The stream's events, batched at the pacer's pace.

    Raises ErrorEvent for an error among them, AnswerCutOffError for an early end.
    """
    async with aclosing(sse.batches(chunks, pacer=pacer)) as batches:
        async for data in batches:
            # JSON escapes quotes inside text, so that these bytes are always a key or a value of the engine's own.
            if b'"error"' in data or b'"abort"' in data:
                begin = 0
                for event in data.split(EVENT_END):
                    if error := _error_in(event):
                        if begin:
                            yield _text(data[:begin])
                        raise error
                    begin += len(event) + len(EVENT_END)
            if _is_complete(data):
                # Complete with its last event: a connection that breaks after it takes nothing away.
                yield _text(data if data.endswith(EVENT_END) else data + EVENT_END)
                return
            if not data.endswith(EVENT_END):  # the stream broke off inside an event, which is not handed on
                data = b"".join(data.rpartition(EVENT_END)[:2])
            if data:
                yield _text(data)
    raise AnswerCutOffError("the engine's stream ended before the answer was complete")


def _is_complete(data: bytes) -> bool:
    if DONE in data or data.endswith(DONE.strip()):
        return True
    return b"event: " in data and any(last in data for last in _LAST_EVENTS)


def _error_in(event: bytes) -> ErrorEvent | None:
    """The error that an event reports: an `error` object, or a generation that the engine aborted."""
    begin = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    try:
        payload = json.loads(event[begin + len(b"data:") :])
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    if payload.get("error"):
        fields = {key: value for key, value in payload.items() if key != "error"}
        return ErrorEvent(from_payload(payload, HTTPStatus.OK), head=event[:begin], fields=fields)
    if aborted := _aborted(payload):
        return ErrorEvent(aborted)
    return None


def _aborted(answer: dict[str, Any]) -> AnswerCutOffError | None:
    """The error that a generation aborted by the engine stands for: it ends like a short answer, and is none."""
    choices = answer.get("choices")
    endings = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    if isinstance(meta := answer.get("meta_info"), dict) and isinstance(reason := meta.get("finish_reason"), dict):
        endings.append(reason.get("type"))
    return AnswerCutOffError("the engine aborted the generation before it was complete") if "abort" in endings else None


def parsed(body: bytes, *, is_json: bool) -> Output:
    """An unstreamed answer: parsed, where it is JSON; else its text, or `{}` for an empty one (`/health`).

    Raises AnswerCutOffError for JSON that does not parse, UpstreamError for an error in the guise of an answer.
    """
    text = body.decode("utf-8", "replace")
    if not is_json:
        return text or {}
    try:
        answer: Output = json.loads(text, parse_constant=lambda _: None)  # NaN would make the output no valid JSON
    except ValueError:
        raise AnswerCutOffError("the engine's answer is not whole: it is no valid JSON") from None
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


def error_event(error: JobError, *, head: bytes = b"", fields: dict[str, Any] | None = None) -> str:
    """An error as a server-sent event."""
    return f"{_text(head)}data: {json.dumps((fields or {}) | error.payload())}\n\n"
