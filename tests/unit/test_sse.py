"""Framing on bytes, batching, and holding the source back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import FULL_CHUNK_BYTES, EventFramer, EventTooLargeError, Pacer, batches

TRICKY = 'data: {"text":"서울 👋 \u2028 \u2029 \u0085 \x0b"}\n\n'.encode()
EVENTS = [b'data: {"a":1}\n\n', TRICKY, b"event: x\ndata: 1\ndata: 2\n\n", b": comment\n\n", b"data: [DONE]\n\n"]


@pytest.mark.parametrize("size", [*range(1, 20), 1000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_framer_gives_whole_events_whatever_the_chunks(size: int, line_end: bytes) -> None:
    stream = b"".join(EVENTS).replace(b"\n", line_end)
    framer = EventFramer()
    chunks = [stream[i : i + size] for i in range(0, len(stream), size)]
    blocks = [framer.feed(chunk) for chunk in chunks]
    assert b"".join(blocks) == b"".join(EVENTS)
    assert all(block.endswith(b"\n\n") for block in blocks if block)


lines = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
event_texts = st.lists(lines, min_size=1, max_size=3).map("\n".join)


@given(st.lists(event_texts), st.lists(st.integers(1, 12)), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_events_cut_anywhere_come_out_whole(
    texts: list[str], sizes: list[int], line_end: str, cut_off: bool
) -> None:
    whole = [f"{text}\n\n".encode() for text in texts]
    stream = b"".join(whole).replace(b"\n", line_end.encode()) + (b"data: ha" if cut_off else b"")
    framer, blocks, begin = EventFramer(), [], 0
    for size in [*sizes, len(stream) + 1]:
        blocks.append(framer.feed(stream[begin : begin + size]))
        begin += size
    assert b"".join(blocks) == b"".join(whole)
    assert all(block.endswith(b"\n\n") for block in blocks if block)


def test_framer_keeps_what_has_not_ended() -> None:
    framer = EventFramer()
    assert framer.feed(b"data: 1\n\ndata: 2\n") == b"data: 1\n\n"
    assert framer.feed(b"\n") == b"data: 2\n\n"


def test_event_without_end_does_not_eat_memory() -> None:
    framer = EventFramer(max_event_bytes=100)
    framer.feed(b"x" * 100)
    with pytest.raises(EventTooLargeError, match="larger than 100 bytes"):
        framer.feed(b"x")


def test_large_event_in_small_chunks_is_framed_in_linear_time() -> None:
    framer = EventFramer()
    for _ in range(20_000):  # 20 MB; searched again each time, this would read 200 GB
        assert framer.feed(b"x" * 1000) == b""
    assert len(framer.feed(b"\n\n")) == 20_000_002


async def chunks_of(items: Iterable[bytes], pause_seconds: float = 0.0) -> AsyncIterator[bytes]:
    for item in items:
        await asyncio.sleep(pause_seconds)
        yield item


@pytest.mark.anyio
async def test_first_event_is_not_held_back() -> None:
    never = asyncio.Event()

    async def one_then_nothing() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await never.wait()

    stream = batches(one_then_nothing())
    assert await asyncio.wait_for(anext(stream), 5) == b"data: 1\n\n"
    await stream.aclose()


@pytest.mark.anyio
async def test_events_gather_while_the_consumer_was_busy() -> None:
    consumer_was_busy, go_on = asyncio.Event(), asyncio.Event()
    events = [b"data: %d\n\n" % n for n in range(50)]

    async def source() -> AsyncIterator[bytes]:
        for event in events:
            if event == events[20]:
                consumer_was_busy.set()
                await go_on.wait()
            yield event

    stream = batches(source())
    assert await anext(stream) == events[0]
    await consumer_was_busy.wait()
    assert await anext(stream) == b"".join(events[1:20])
    go_on.set()
    assert b"".join([batch async for batch in stream]) == b"".join(events[20:])


@pytest.mark.anyio
async def test_no_batch_exceeds_the_limit_but_a_single_larger_event() -> None:
    sizes = [10, 10, 10, 50, 10, 10]
    items = [b"x" * (size - 2) + b"\n\n" for size in sizes]
    seen = [len(batch) async for batch in batches(chunks_of([b"".join(items)]), max_batch_bytes=25)]
    assert seen == [10 + 10, 10, 50, 10 + 10]


@pytest.mark.anyio
async def test_slow_consumer_holds_the_source_back() -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 98 + b"\n\n"

    stream = batches(endless(), max_batch_bytes=1000)
    for taken in range(1, 5):
        await anext(stream)
        await asyncio.sleep(0.01)
        assert given <= 10 * (taken + 1)
    await stream.aclose()


@pytest.mark.anyio
async def test_slow_consumer_holds_a_fast_source_back_too() -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            await asyncio.sleep(0)
            yield b"x" * (FULL_CHUNK_BYTES - 2) + b"\n\n"

    stream = batches(endless(), max_batch_bytes=4 * FULL_CHUNK_BYTES)
    await anext(stream)
    await asyncio.sleep(0.05)
    assert given <= 6
    await stream.aclose()


@pytest.mark.anyio
async def test_what_came_before_an_error_is_handed_over_first() -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"data: 1\n\ndata: 2\n\nda"
        raise ConnectionResetError

    stream = batches(breaks())
    assert await anext(stream) == b"data: 1\n\ndata: 2\n\n"
    with pytest.raises(ConnectionResetError):
        await anext(stream)


@pytest.mark.anyio
async def test_event_that_does_not_end_is_not_handed_over() -> None:
    seen = [batch async for batch in batches(chunks_of([b"data: 1\n\nda", b"ta: [DONE]"]))]
    assert seen == [b"data: 1\n\n"]


@pytest.mark.anyio
async def test_closing_stops_the_reading() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield b"data: 1\n\n"
        finally:
            closed.set()

    stream = batches(endless())
    await anext(stream)
    await stream.aclose()
    await asyncio.wait_for(closed.wait(), 5)


@pytest.mark.anyio
async def test_pacer_keeps_the_batches_of_many_streams_apart() -> None:
    pacer, times = Pacer(0.1), []
    with ExitStack() as others:
        for _ in range(199):
            others.enter_context(pacer.stream())
        async for _ in batches(chunks_of([b"data: 1\n\n"] * 60, 0.01), pacer=pacer):
            times.append(time.monotonic())
            if len(times) == 3:
                break
    first, second, third = times
    assert second - first > 0.19
    assert third - second > 0.19


@pytest.mark.anyio
async def test_pacer_leaves_one_stream_alone() -> None:
    pacer = Pacer(0.1)
    with pacer.stream():
        assert pacer.interval_seconds() == pytest.approx(0.001)
    assert pacer.interval_seconds() == 0
