"""A held answer collects in its socket, and its end is noticed soon, however long the hold."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.http1 import LOOK_SECONDS
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
