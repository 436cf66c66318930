"""Server-sent events: from a stream of byte chunks to batches of whole events.

Chunks end anywhere, even inside an event or a UTF-8 character, so events are framed on bytes and only whole ones are
passed on. Splitting text into lines is not an option: U+2028, U+2029 and U+0085 may appear inside an event's JSON, and
Python treats them as line ends.

Nothing here knows about the network: the chunks come from any async iterator.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import contextmanager

from common.tasks import cancel

MAX_BATCH_BYTES = 512 * 1024  # RunPod refuses one streamed output over 1 MB; JSON escapes can nearly double a batch
MAX_EVENT_BYTES = 64 * 1024 * 1024  # far above any event SGLang sends; a stream without event ends must not eat memory

# When this much comes at once, holding back would fill the socket's buffer (128 KiB at first) and stall the engine.
FULL_CHUNK_BYTES = 16 * 1024

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


class Pacer:
    """Spaces out the batches of many streams, so that a busy worker sends few large ones instead of many small ones.

    Each stream's batches begin at least `flush_seconds * streams / 100` apart. So all streams together send at most
    100 / flush_seconds batches a second, however many there are; a single stream, or a few, never notice.
    """

    STREAMS = 100

    def __init__(self, flush_seconds: float) -> None:
        self._flush_seconds = flush_seconds
        self._streams = 0

    @contextmanager
    def stream(self) -> Generator[None, None, None]:
        """Count a stream for the length of this context."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def interval_seconds(self) -> float:
        """The least time between the starts of two batches of one stream, with the present number of streams."""
        return self._flush_seconds * self._streams / self.STREAMS


UNPACED = Pacer(0.0)


async def batches(
    chunks: AsyncIterator[bytes],
    *,
    pacer: Pacer = UNPACED,
    max_batch_bytes: int = MAX_BATCH_BYTES,
    max_event_bytes: int = MAX_EVENT_BYTES,
) -> AsyncGenerator[bytes, None]:
    """Read `chunks` ahead of the consumer; yield batches of whole events.

    The first batch comes as soon as there is an event. While the consumer is busy with one, and for as long as the
    pacer wants, everything that arrives is collected into the next, up to `max_batch_bytes` a batch (a larger event
    makes a batch by itself). Reading pauses while that many bytes are waiting, so that memory is bounded and a slow
    consumer slows down the source.

    Bytes after the last whole event are dropped, as every reader of such streams does: they are not an event. An
    exception from `chunks` is raised here, after everything that came before it has been yielded.
    EventTooLargeError as in `EventFramer`. Closing this generator stops the reading.
    """
    queue = _EventQueue(max_batch_bytes)
    reading = asyncio.create_task(_read(chunks, EventFramer(max_event_bytes), queue))
    try:
        with pacer.stream():
            while batch := await queue.take():
                queue.hold(pacer.interval_seconds())
                yield batch
            await reading  # raises the exception that ended it, if any
    finally:
        await cancel(reading)


async def _read(chunks: AsyncIterator[bytes], framer: EventFramer, queue: _EventQueue) -> None:
    try:
        async for chunk in chunks:
            if block := framer.feed(chunk):
                queue.put(block)
            await queue.has_room()
            if len(chunk) < FULL_CHUNK_BYTES:  # else the source is fast
                await queue.hold_is_over()
    finally:
        queue.close()


class _EventQueue:
    """Events on their way from one reading task to one consumer."""

    def __init__(self, max_batch_bytes: int) -> None:
        self._max_batch_bytes = max_batch_bytes
        self._blocks: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._is_awaited = False
        self._held_until = 0.0  # on the loop's clock
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._time = asyncio.get_running_loop().time

    def put(self, block: bytes) -> None:
        self._blocks.append(block)
        self._bytes += len(block)
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    def hold(self, seconds: float) -> None:
        """Pause reading for this long. The next batch is whatever has come by then."""
        self._held_until = self._time() + seconds

    async def has_room(self) -> None:
        """Return once less than one full batch is waiting, and an idle consumer has taken what is there.

        Only then is it known how long to hold.
        """
        while self._bytes >= self._max_batch_bytes or (self._blocks and self._is_awaited):
            self._room.clear()
            await self._room.wait()

    async def hold_is_over(self) -> None:
        """Return once reading is no longer held.

        Meanwhile, what arrives collects in the socket's buffer and is then read in one go, which is cheaper than event
        by event.
        """
        if (seconds := self._held_until - self._time()) > 0:
            await asyncio.sleep(seconds)

    async def take(self) -> bytes:
        """Everything that is waiting, up to one batch; empty when the queue is closed and drained."""
        self._is_awaited = True
        while not self._blocks and not self._closed:
            self._arrived.clear()
            await self._arrived.wait()
        self._is_awaited = False
        batch = b"".join(self._blocks)
        self._blocks.clear()
        if len(batch) > self._max_batch_bytes:
            end = self._end_of_batch(batch)
            batch, rest = batch[:end], batch[end:]
            if rest:
                self._blocks.append(rest)
        self._bytes -= len(batch)
        self._room.set()
        return batch

    def _end_of_batch(self, block: bytes) -> int:
        """Where the last event that fits ends; where the first event ends, if none fits."""
        end = block.rfind(EVENT_END, 0, self._max_batch_bytes)
        if end == -1:
            end = block.find(EVENT_END)
        return end + len(EVENT_END) if end != -1 else len(block)
