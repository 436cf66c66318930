"""Server-sent events: from a stream of byte chunks to batches of whole events.

Chunks end anywhere, even inside an event or a UTF-8 character, so events are framed on bytes and only whole ones are
passed on. Splitting text into lines is not an option: U+2028, U+2029 and U+0085 may appear inside an event's JSON, and
Python treats them as line ends.

Nothing here knows about the network: the chunks come from any async iterator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Protocol

from gateway.pacing import Pacer

MAX_BATCH_BYTES = 512 * 1024  # RunPod refuses one streamed output over 1 MB; JSON escapes can nearly double a batch
MAX_EVENT_BYTES = 64 * 1024 * 1024  # far above any event SGLang sends; a stream without event ends must not eat memory

EVENT_END = b"\n\n"


class EventTooLargeError(Exception):
    """One event grew over the limit without ending."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit_bytes} bytes")


class EventFramer:
    r"""Cuts a byte stream into blocks of whole events, each event ending with its blank line, `\n\n`.

    Line ends may be `\n` or `\r\n`; events come out with `\n`. (JSON escapes both characters, so a raw one is always a
    line end.)
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = bytearray()  # the beginning of an event that has not ended yet
        self._searched = 0  # no event ends within this many bytes from the start of the rest

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk; return the events that it completes, in order, as one block; empty if there are none.

        Raises EventTooLargeError when an unfinished event exceeds the limit.
        """
        rest = self._rest
        carriage_return = b"\r" in chunk or rest.endswith(b"\r")
        if not rest and not carriage_return and chunk.endswith(EVENT_END):
            return chunk  # as it nearly always is
        rest += chunk
        if carriage_return:
            self._normalise_line_ends()
        end = rest.rfind(EVENT_END, self._searched) + len(EVENT_END)
        block = bytes(memoryview(rest)[:end]) if end >= len(EVENT_END) else b""
        del rest[: len(block)]
        if len(rest) > self._max_event_bytes:
            raise EventTooLargeError(self._max_event_bytes)
        self._searched = max(0, len(rest) - 1)
        return block

    def _normalise_line_ends(self) -> None:
        begin = max(0, self._searched - 1)
        # A \r at the very end waits for the byte after it.
        self._rest[begin:] = self._rest[begin:].replace(b"\r\n", b"\n")
        self._searched = begin


class Chunks(Protocol):
    """Where a stream's bytes come from: an async iterator that can be held."""

    @property
    def has_more(self) -> bool:
        """Whether the next chunk is there already."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    def hold(self, seconds: float, /) -> Awaitable[None]:
        """Let bytes collect for so long, or until the last of them is there; the next chunk has all of them."""


async def batches(
    chunks: Chunks,
    *,
    pacer: Pacer,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> AsyncGenerator[bytes, None]:
    """Batches of whole events, each as soon as there is an event, up to `max_batch_bytes` each.

    While the consumer is busy with one, and for as long as the pacer wants, nothing is read: what arrives collects
    where the chunks come from, and makes the next batch. So memory is bounded, and a slow consumer slows down the
    source. The first batch and the last are never held back. A larger event makes a batch by itself.

    Bytes after the last whole event are dropped, as every reader of such streams does: they are not an event. An
    exception from `chunks` is raised here, after everything that came before it has been yielded.
    EventTooLargeError as in `EventFramer`.
    """
    framer, waiting = EventFramer(max_event_bytes), b""
    time = asyncio.get_running_loop().time
    with pacer.stream():
        async for chunk in chunks:
            began, was_cut, waiting = time(), False, waiting + framer.feed(chunk)
            while len(waiting) > max_batch_bytes:
                end = _end_of_batch(waiting, max_batch_bytes)
                yield waiting[:end]
                was_cut, waiting = True, waiting[end:]
            if not waiting or (was_cut and chunks.has_more):
                continue  # what is left of a cut goes with what comes next
            yield waiting
            waiting = b""
            if (seconds := pacer.interval_seconds()) and (left := began + seconds - time()) > 0:
                await chunks.hold(left)


def _end_of_batch(block: bytes, max_bytes: int) -> int:
    """Where the last event that fits ends; where the first event ends, if none fits."""
    end = block.rfind(EVENT_END, 0, max_bytes)
    if end == -1:
        end = block.find(EVENT_END)
    return end + len(EVENT_END) if end != -1 else len(block)
