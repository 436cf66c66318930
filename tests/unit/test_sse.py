"""Framing on bytes, batching, and holding the source back."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pacing import FixedPacer
from gateway.sse import EventFramer, EventTooLargeError, batches
from tests.chunks import NO_CEILING, Source

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


@pytest.mark.anyio
async def test_nothing_is_read_while_the_consumer_is_busy() -> None:
    source = Source(*[b"data: 1\n\n"] * 9)
    stream = batches(source, pacer=NO_CEILING)
    for taken in range(1, 5):
        await anext(stream)
        assert source.given == taken
    assert source.holds == []


@pytest.mark.anyio
async def test_no_batch_exceeds_the_limit_but_a_single_larger_event() -> None:
    sizes = [10, 10, 10, 50, 10, 10]
    items = [b"x" * (size - 2) + b"\n\n" for size in sizes]
    source = Source(b"".join(items))
    seen = [len(batch) async for batch in batches(source, pacer=NO_CEILING, max_batch_bytes=25)]
    assert seen == [10 + 10, 10, 50, 10 + 10]


@pytest.mark.anyio
async def test_what_came_before_an_error_is_handed_over_first() -> None:
    stream = batches(Source(b"data: 1\n\ndata: 2\n\nda", error=ConnectionResetError()), pacer=NO_CEILING)
    assert await anext(stream) == b"data: 1\n\ndata: 2\n\n"
    with pytest.raises(ConnectionResetError):
        await anext(stream)


@pytest.mark.anyio
async def test_event_that_does_not_end_is_not_handed_over() -> None:
    seen = [batch async for batch in batches(Source(b"data: 1\n\nda", b"ta: [DONE]"), pacer=NO_CEILING)]
    assert seen == [b"data: 1\n\n"]


@pytest.mark.anyio
async def test_ceiling_holds_the_batches_of_many_streams_apart_but_not_the_first() -> None:
    pacer, source = FixedPacer(0.1), Source(*[b"data: 1\n\n"] * 3)
    with ExitStack() as others:
        for _ in range(199):
            others.enter_context(pacer.stream())
        stream = batches(source, pacer=pacer)
        await anext(stream)
        assert source.holds == []
        await anext(stream)
        assert source.holds == [pytest.approx(0.2, abs=0.1)]
        await stream.aclose()
