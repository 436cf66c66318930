"""A held answer collects in its socket, and its end is noticed soon, however long the hold."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from itertools import product

import pytest

from common.http1 import LOOK_SECONDS, Connection, Timeouts
from gateway.pacing import FixedPacer, LoadPacer
from gateway.sse import batches
from sglang_engine.transport import CONNECTION
from tests.parts.test_transport import CHUNKED, Peer, talking_to

pytestmark = pytest.mark.anyio

FIRST, MORE, LAST = b"1\r\na\r\n", b"1\r\nb\r\n", b"1\r\nc\r\n0\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_hold_ends_with_the_answer_and_what_collected_is_read_at_once() -> None:
    go_on, ended_at = asyncio.Event(), 0.0

    async def script(peer: Peer) -> None:
        nonlocal ended_at
        await peer.request()
        await peer.send(CHUNKED, FIRST)
        await go_on.wait()
        await peer.send(*[MORE] * 5)
        ended_at = time.monotonic()
        await peer.send(LAST)
        await peer.is_left()

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"a"
        go_on.set()
        await response.extensions[CONNECTION].hold(60.0)
        assert time.monotonic() - ended_at < 1.0  # LOOK_SECONDS on an idle machine
        assert await anext(pieces) == b"bbbbbc"
        assert [piece async for piece in pieces] == []


async def test_hold_is_over_in_time_and_what_came_meanwhile_is_one_piece() -> None:
    sent = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, FIRST)
        for _ in range(20):
            await peer.send(MORE)
        sent.set()
        await peer.is_left()

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        pieces = response.aiter_raw()
        received = await anext(pieces)
        await sent.wait()
        began = time.monotonic()
        await response.extensions[CONNECTION].hold(5 * LOOK_SECONDS)
        assert time.monotonic() - began >= 4 * LOOK_SECONDS
        assert received + await anext(pieces) == b"a" + b"b" * 20


async def test_hold_of_a_silent_stream_is_over_too_and_its_next_event_comes() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, FIRST)
        await go_on.wait()
        await peer.send(LAST)

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"a"
        async with asyncio.timeout(10):
            await response.extensions[CONNECTION].hold(0.1)
            go_on.set()
            assert await anext(pieces) == b"c"


async def test_hold_ends_when_the_connection_breaks() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, FIRST)
        await go_on.wait()

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        assert await anext(response.aiter_raw()) == b"a"
        go_on.set()
        async with asyncio.timeout(10):
            await response.extensions[CONNECTION].hold(60.0)


LATE_SECONDS = 0.05  # the promise: a stream's end is not later than that, whatever the setting and the load


ROUND_TRIP_SECONDS = 0.03


class ScriptedClock(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when there is nothing to do: then it is the next timer's at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def select_or_jump(timeout: float | None = None) -> list[object]:
            if not (ready := select(0)) and timeout:
                self.now += timeout
            return list(ready)

        self._selector.select = select_or_jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now

    def be_busy(self, seconds: float) -> None:
        """Work for so long, again and again, with a tenth of that in between."""
        self.now += seconds
        self.call_later(seconds / 10, self.be_busy, seconds)


class OfConnection:
    """A connection's answer, as `sse.batches` reads it."""

    def __init__(self, connection: Connection) -> None:
        self.hold = connection.hold
        self._connection = connection

    @property
    def has_more(self) -> bool:
        return self._connection.has_more

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not (piece := await self._connection.read()):
            raise StopAsyncIteration
        return piece


async def received(
    clock: ScriptedClock, pacer: FixedPacer, *, first_at: float, end_at: float, busy_seconds: float
) -> list[tuple[float, bytes]]:
    """A stream's batches and when each came. It has an event every 10 ms from `first_at`, and its last at `end_at`."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    with theirs:
        _, connection = await clock.create_connection(lambda: Connection(lambda _: None), sock=ours)
        clock.call_at(first_at, theirs.sendall, CHUNKED + event(b"first"))
        for number in range(1, int((end_at - first_at) * 100)):
            clock.call_at(first_at + number / 100, theirs.sendall, event(b"more"))
        clock.call_at(end_at, theirs.sendall, event(b"last") + b"0\r\n\r\n")
        if busy_seconds:
            clock.be_busy(busy_seconds)
        await connection.send(b"GET / HTTP/1.1", b"", Timeouts(None, None, None, None))
        async with asyncio.timeout(60), aclosing(batches(OfConnection(connection), pacer=pacer)) as stream:
            came: list[tuple[float, bytes]] = []
            async for batch in stream:
                came.append((clock.time(), batch))
                await asyncio.sleep(ROUND_TRIP_SECONDS)  # while it is posted
        connection.abort()
        await asyncio.sleep(0)
    return came


def event(name: bytes) -> bytes:
    return b"%x\r\ndata: %b\n\n\r\n" % (len(name) + 8, name)


@pytest.mark.parametrize("busy_seconds", [0.0, 0.01], ids=["idle", "busy"])
@pytest.mark.parametrize(
    ("flush_seconds", "streams"),
    [(LoadPacer.MOST_SECONDS, 100), (0.1, 300), (5.0, 1), (5.0, 300), (10.0, 300)],
    ids=["auto at its most", "100 ms", "5 s, alone", "5 s", "10 s"],
)
def test_end_of_a_held_stream_is_not_late(flush_seconds: float, streams: int, busy_seconds: float) -> None:
    for end_at, first_at in product((0.25, 0.333, 1.0, 2.0137, 7.5), (0.1, 0.1171)):
        clock, pacer = ScriptedClock(), FixedPacer(flush_seconds)
        with ExitStack() as others:
            for _ in range(streams - 1):
                others.enter_context(pacer.stream())
            came = clock.run_until_complete(
                received(clock, pacer, first_at=first_at, end_at=end_at, busy_seconds=busy_seconds)
            )
        clock.close()
        (first_came, first), (last_came, last) = came[0], came[-1]
        assert first.startswith(b"data: first\n\n")
        assert first_came - first_at <= busy_seconds + 0.001
        assert last.endswith(b"data: last\n\n")
        assert last_came - end_at <= LATE_SECONDS
        interval = flush_seconds * streams / FixedPacer.STREAMS
        assert len(came) <= 2 + (end_at - first_at) / interval  # and all but the end was held
