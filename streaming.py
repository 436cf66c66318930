"""Server-sent events: from a stream of byte chunks to batches of whole events.

Chunks end anywhere, also inside an event or a UTF-8 character, so events are framed on bytes and only whole ones are
handed on. Splitting text into lines is not an option: U+2028, U+2029 and U+0085 may stand inside an event's JSON, and
are line ends to Python.

Nothing here knows the network: the chunks come from any async iterator.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

from tasks import cancel

MAX_BATCH_BYTES = 512 * 1024  # RunPod refuses one streamed output over 1 MB; JSON escapes can nearly double a batch
MAX_EVENT_BYTES = 64 * 1024 * 1024  # far above any event SGLang sends; a stream without event ends must not eat memory

_EVENT_END = b"\n\n"


class EventTooLargeError(Exception):
    """One event grew over the limit without ending."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"an event of the stream is larger than {limit_bytes} bytes")


class EventFramer:
    r"""Cuts a byte stream into whole events, each ending with its blank line, `\n\n`.

    Line ends may be `\n` or `\r\n`; events come out with `\n`. (JSON escapes both characters, so that a raw one is
    always a line end.)
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = bytearray()  # the beginning of an event that has not ended yet
        self._searched = 0  # no event ends in this many first bytes of the rest

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next chunk; return the events that it completes, in order.

        Raises EventTooLargeError when an unfinished event exceeds the limit.
        """
        rest = self._rest
        carriage_return = b"\r" in chunk or rest.endswith(b"\r")
        rest += chunk
        if carriage_return:
            self._normalise_line_ends()
        events = []
        begin, search = 0, self._searched
        while (end := rest.find(_EVENT_END, search)) != -1:
            search = end + len(_EVENT_END)
            events.append(bytes(rest[begin:search]))
            begin = search
        del rest[:begin]
        if len(rest) > self._max_event_bytes:
            raise EventTooLargeError(self._max_event_bytes)
        self._searched = max(0, len(rest) - 1)
        return events

    def close(self) -> bytes:
        """The bytes after the last whole event: empty, unless the stream stopped inside an event."""
        return bytes(self._rest).strip()

    def _normalise_line_ends(self) -> None:
        begin = max(0, self._searched - 1)
        # A \r at the very end waits for the byte after it.
        self._rest[begin:] = self._rest[begin:].replace(b"\r\n", b"\n")
        self._searched = begin


async def batches(
    chunks: AsyncIterator[bytes],
    *,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> AsyncGenerator[list[bytes], None]:
    """Read `chunks` ahead of the consumer; yield lists of whole events.

    The first list comes as soon as there is an event. While the consumer is busy with one, everything that arrives
    gathers in the next, up to `max_batch_bytes` a list (a single larger event comes alone). Reading pauses while that
    many bytes are waiting, so that memory is bounded and a slow consumer holds the source back.

    Bytes after the last whole event are handed over as a last, incomplete event: only the consumer knows whether the
    stream was complete. An exception of `chunks` is raised here, after everything that came before it has been yielded.
    EventTooLargeError as in `EventFramer`. Closing this generator stops the reading.
    """
    queue = _EventQueue(max_batch_bytes)
    reading = asyncio.create_task(_read(chunks, EventFramer(max_event_bytes), queue))
    try:
        while batch := await queue.take():
            yield batch
        await reading  # raises what ended it
    finally:
        await cancel(reading)


async def _read(chunks: AsyncIterator[bytes], framer: EventFramer, queue: _EventQueue) -> None:
    try:
        async for chunk in chunks:
            for event in framer.feed(chunk):
                queue.put(event)
            await queue.has_room()
        if rest := framer.close():
            queue.put(rest)
    finally:
        queue.close()


class _EventQueue:
    """Events on their way from the reading task to the consumer; one of each."""

    def __init__(self, max_batch_bytes: int) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, event: bytes) -> None:
        self._events.append(event)
        self._bytes += len(event)
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    async def has_room(self) -> None:
        """Return once less than one full batch is waiting."""
        while self._bytes >= self._max_batch_bytes:
            self._room.clear()
            await self._room.wait()

    async def take(self) -> list[bytes]:
        """Everything that waits, up to one batch; empty when the queue is closed and drained."""
        while not self._events and not self._closed:
            self._arrived.clear()
            await self._arrived.wait()
        batch: list[bytes] = []
        size = 0
        while self._events and (not batch or size + len(self._events[0]) <= self._max_batch_bytes):
            event = self._events.popleft()
            size += len(event)
            batch.append(event)
        self._bytes -= size
        self._room.set()
        return batch
