"""What an answer says about itself: tokens and the reason of its end, from its last events or its whole JSON.

A stream says so in one of its last events, so no other event is parsed. SGLang's shapes (0.5.23): OpenAI's `usage` and
`finish_reason`, Anthropic's `message_delta` (and `message_start`, which alone has the input), `response.completed` of
`/v1/responses`, and the `meta_info` of `/generate`, in which every event has the counts so far.
"""

from __future__ import annotations

import re
import time
from collections import deque
from contextlib import suppress
from typing import Any

import orjson

from common import meters
from common.job_record import JobRecord
from gateway.sse import EVENT_END

# What is said last is within this many events: the reasons of several choices, usage, `[DONE]`.
_LAST_EVENTS = 8
_BATCHES = 5
_KEPT_BYTES = 16 * 1024  # of an earlier batch, and of the first
_MAX_EVENT_BYTES = 1024 * 1024  # a larger one would hold up the loop for milliseconds; its numbers stay unknown

_REASON = re.compile(r"[a-z_]{1,40}")
# What the numbers of tokens and the reason stand under. Most events have neither: their `finish_reason` is null.
_SAYS_SOMETHING = re.compile(rb'_tokens"|_reason"\s*:\s*[^\sn]|"(?:reason|status)"')


class Watch:
    """Fills a job's record from its answer."""

    # Three thousand batches a second may pass here: what is touched for each is in one small object.
    __slots__ = ("_first", "_last", "_last_at", "_record", "_size")

    def __init__(self, record: JobRecord) -> None:
        self._record = record
        self._first = b""
        self._last_at = 0.0
        self._size = 0
        self._last: deque[bytes] = deque(maxlen=_BATCHES)
        """The last batches, the newest whole, of the others the end."""

    def events(self, data: bytes) -> None:
        """Whole events of a stream, which have just arrived or been waited for."""
        now = time.monotonic()
        if self._last_at:
            meters.OUTPUT_GAP_SECONDS.observe(now - self._last_at)
        else:
            self._record.first_token_seconds = now - self._record.began
            self._first = data[:_KEPT_BYTES]
        self._last_at = now
        self._size += len(data)
        if len(data) > _KEPT_BYTES:
            self._last = deque((earlier[-_KEPT_BYTES:] for earlier in self._last), maxlen=_BATCHES)
        self._last.append(data)

    def end_of_events(self) -> None:
        """The stream is over, however it ended: read what its last events say."""
        if not self._last_at:
            return
        self._record.bytes = self._size
        tail = b"".join(self._last)
        for event in reversed(tail.rsplit(EVENT_END, _LAST_EVENTS + 1)[-_LAST_EVENTS - 1 :]):
            if _SAYS_SOMETHING.search(event):
                note_usage(self._record, _payload(event))
                if self._record.completion_tokens is not None and self._record.finish_reason is not None:
                    break  # `/generate` says it all again in each event, beside all of the text so far
        if self._record.prompt_tokens is None:
            completion = self._record.completion_tokens  # of which the first event knows nothing
            note_usage(self._record, _payload(self._first.partition(EVENT_END)[0]))
            self._record.completion_tokens = completion

    def whole(self, size_bytes: int, answer: Any) -> None:
        """An unstreamed answer: its size, and its JSON value."""
        self._record.bytes = size_bytes
        note_usage(self._record, answer)

    def whole_bytes(self, body: bytes) -> None:
        """The same, from the answer's bytes, of which nobody else needs the value."""
        value: Any = None
        if len(body) <= _MAX_EVENT_BYTES:
            with suppress(orjson.JSONDecodeError):
                value = orjson.loads(body)
        self.whole(len(body), value)


def _payload(event: bytes) -> Any:
    """The value of an event's data; None if it has none, or is too large to look at."""
    if len(event) > _MAX_EVENT_BYTES:
        return None
    _, found, data = b"\n".join((b"", event)).rpartition(b"\ndata:")
    try:
        return orjson.loads(data) if found else None
    except orjson.JSONDecodeError:  # `[DONE]`
        return None


def note_usage(record: JobRecord, answer: Any) -> None:
    """Put into a record what an answer, or one event of it, says; what is known already stays."""
    if isinstance(answer, list):  # several prompts to /generate
        answer = {"meta_info": _sum_of([part.get("meta_info") for part in answer if isinstance(part, dict)])}
    if not isinstance(answer, dict):
        return
    inner = next((answer[key] for key in ("response", "message") if isinstance(answer.get(key), dict)), answer)
    places = (part[key] for part in (answer, inner) for key in ("usage", "meta_info") if _is_object(part, key))
    usage: dict[str, Any] = next(places, {})
    cached = _count(usage, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
    read = _count(usage, "cache_read_input_tokens")  # which Anthropic does not count as input
    prompt = _count(usage, "prompt_tokens")
    if prompt is None and (prompt := _count(usage, "input_tokens")) is not None and read:
        prompt, cached = prompt + read, read
    completion = _count(usage, "completion_tokens")
    completion = _count(usage, "output_tokens") if completion is None else completion
    reasoning = _count(usage, "reasoning_tokens", "completion_tokens_details", "output_tokens_details")
    record.prompt_tokens = _first_known(record.prompt_tokens, prompt)
    record.cached_tokens = _first_known(record.cached_tokens, cached)
    record.completion_tokens = _first_known(record.completion_tokens, completion)
    record.reasoning_tokens = _first_known(record.reasoning_tokens, reasoning)
    record.finish_reason = record.finish_reason or _reason_of(answer, inner, usage)


def _is_object(answer: dict[str, Any], key: str) -> bool:
    return isinstance(answer.get(key), dict)


def _first_known(known: int | None, found: int | None) -> int | None:
    return found if known is None else known


def _count(usage: dict[str, Any], name: str, *details: str) -> int | None:
    """A number of tokens; if it is not there itself, that in one of the objects with details."""
    for place in (usage, *(usage[key] for key in details if _is_object(usage, key))):
        if type(value := place.get(name)) is int and value >= 0:
            return value
    return None


def _sum_of(infos: list[Any]) -> dict[str, Any]:
    known = [info for info in infos if isinstance(info, dict)]
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    sums = {name: [_count(info, name) for info in known] for name in names}
    total: dict[str, Any] = {name: sum(filter(None, counts)) for name, counts in sums.items() if None not in counts}
    return total | {"finish_reason": known[-1].get("finish_reason")} if known else {}


def _reason_of(answer: dict[str, Any], inner: dict[str, Any], usage: dict[str, Any]) -> str | None:
    """The reason of the end, in the engine's word. Anything but a plain word could quote a user."""
    choices, delta, incomplete = answer.get("choices"), answer.get("delta"), inner.get("incomplete_details")
    places: list[Any] = [
        *(c.get("finish_reason") for c in (choices if isinstance(choices, list) else []) if isinstance(c, dict)),
        usage.get("finish_reason"),
        inner.get("stop_reason"),
        delta.get("stop_reason") if isinstance(delta, dict) else None,
        incomplete.get("reason") if isinstance(incomplete, dict) else None,
        inner.get("status") if inner.get("object") == "response" else None,
    ]
    for place in places:
        reason = place.get("type") if isinstance(place, dict) else place
        if isinstance(reason, str) and _REASON.fullmatch(reason):
            return reason
    return None
