"""What an engine can do to a connection: drip, never end, answer late or early, take nothing, accept nobody."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from common import http1
from common.descriptors import RESERVED, connections_allowed, lacks_descriptors, raise_descriptor_limit
from sglang_engine.transport import EngineTransport
from tests.parts.test_transport import CHUNKED, OK, Peer, talking_to
from tests.waiting import turns_of_the_loop, until

pytestmark = pytest.mark.anyio

EMPTY = OK + b"Content-Length: 0\r\n\r\n"
LATE = OK + b"X-Late: yes\r\nContent-Length: 4\r\n\r\nlate"
MIB = 1024 * 1024


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def drip(peer: Peer, piece: bytes) -> None:
    """Send a piece again and again, each time well within the read timeout."""
    while True:
        peer.writer.write(piece)
        await peer.writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("begin", [b"", OK + b"X-Endless: "], ids=["interim answers", "a header"])
async def test_dripped_head_ends_at_the_read_timeout(begin: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(begin)
        await drip(peer, b"x" if begin else b"HTTP/1.1 103 Early Hints\r\n\r\n")

    async with talking_to(script, read_seconds=0.3) as (client, _), asyncio.timeout(10):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")


async def test_endless_head_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(OK)
        for number in range(10_000):
            peer.writer.write(b"X-%d: %s\r\n" % (number, b"y" * 1000))
            await peer.writer.drain()
        await peer.is_left()

    async with talking_to(script) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError, match="head is longer than"):
            await client.get("/")


async def test_stream_may_take_longer_than_the_read_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for _ in range(8):
            await asyncio.sleep(0.1)
            await peer.send(b"1\r\nx\r\n")
        await peer.send(b"0\r\n\r\n")

    async with talking_to(script, read_seconds=0.7) as (client, _):
        assert (await client.get("/")).content == b"x" * 8


async def test_answer_that_comes_late_on_a_kept_connection_is_not_the_next_one_s() -> None:
    """Even if the event loop has not seen it yet when the next request takes the connection."""
    accepted: list[socket.socket] = []
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            accepted.append(listener.accept()[0])
            accepted[-1].recv(65536)
            accepted[-1].sendall(EMPTY)
            loop.call_soon_threadsafe(answered.set)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        address = listener.getsockname()
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        way = EngineTransport(*address, keepalive_seconds=60)
        async with httpx.AsyncClient(transport=way, base_url="http://engine", timeout=5) as client:
            await client.get("/first")
            await answered.wait()
            accepted[0].sendall(LATE)  # now in the client's socket; the loop has had no chance to look
            response = await client.get("/second")
            assert (response.content, "X-Late" in response.headers) == (b"", False)
        await serving
        for each in accepted:
            each.close()


async def test_answer_before_the_whole_request_on_a_kept_connection_is_sent_again_elsewhere() -> None:
    """What comes while a request is still on its way cannot answer it; nor can its engine have read all of it."""

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        await peer.send(EMPTY)
        if server.connections > 1:
            return
        assert b"GET" in head
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(LATE)
        await peer.is_left()

    async with talking_to(script) as (client, server):
        await client.get("/first")
        response = await client.post("/second", content=bytes(40 * MIB))
        assert (response.status_code, response.content) == (200, b"")
        assert server.connections == 2


async def test_connection_answered_before_the_whole_request_is_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}")
        with suppress(ConnectionError):
            while await peer.reader.read(65536):
                pass

    async with talking_to(script) as (client, server):
        for _ in range(2):
            response = await client.post("/", content=bytes(40 * MIB))
            assert (response.status_code, response.content) == (413, b"{}")
        assert server.connections == 2


async def test_body_is_written_no_faster_than_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()
    body = bytes(64 * MIB)
    buffers: list[asyncio.Transport] = []

    class Watched(http1.Connection):
        def connection_made(self, made: asyncio.BaseTransport) -> None:
            super().connection_made(made)
            buffers.append(self._transport)

    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go_on.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        _, sent = await peer.request()
        assert sent == body
        await peer.send(EMPTY)

    monkeypatch.setattr(http1, "Connection", Watched)
    async with talking_to(script, read_seconds=30) as (client, _):
        posting = asyncio.create_task(client.post("/", content=body))
        done, _ = await asyncio.wait({posting}, timeout=0.5)
        assert not done
        assert buffers[0].get_write_buffer_size() < MIB
        go_on.set()
        assert (await posting).status_code == 200


async def test_server_that_takes_nothing_is_a_write_timeout() -> None:
    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(30)

    async with talking_to(script, read_seconds=0.3) as (client, _), asyncio.timeout(15):
        with pytest.raises(httpx.WriteTimeout):
            await client.post("/", content=bytes(64 * MIB))


async def test_connect_timeout_is_tried_again_while_the_server_is_busy() -> None:
    """A full backlog is what a busy server's kernel answers with silence."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        way = EngineTransport(*address, keepalive_seconds=1)
        timeout = httpx.Timeout(20, connect=0.3)
        async with httpx.AsyncClient(transport=way, base_url="http://engine", timeout=timeout) as client:
            getting = asyncio.create_task(client.get("/"))
            done, _ = await asyncio.wait({getting}, timeout=1.0)
            assert not done
            serving = asyncio.create_task(asyncio.to_thread(answer_the_one_that_asks, listener))
            assert (await getting).status_code == 200
            await serving
        for each in waiting:
            each.close()


def answer_the_one_that_asks(listener: socket.socket) -> None:
    listener.settimeout(20)
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.5)
            with suppress(TimeoutError, ConnectionError):
                if connection.recv(65536):
                    connection.sendall(EMPTY)
                    return


async def test_connect_timeout_ends_at_the_pool_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        way = EngineTransport(*address, keepalive_seconds=1)
        timeout = httpx.Timeout(0.5, connect=0.2)
        async with httpx.AsyncClient(transport=way, base_url="http://engine", timeout=timeout) as client:
            async with asyncio.timeout(10):
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get("/")
        for each in waiting:
            each.close()


@pytest.fixture
async def few_descriptors() -> AsyncIterator[list[socket.socket]]:
    """As many descriptors as are open, none to spare; closing one of the sockets gives one back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[socket.socket] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in taken:
            each.close()


def take_all(taken: list[socket.socket]) -> None:
    with suppress(OSError):
        while True:
            taken.append(socket.socket())


async def test_request_waits_for_a_file_descriptor(few_descriptors: list[socket.socket]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(EMPTY)

    async with talking_to(script) as (client, _):
        take_all(few_descriptors)
        getting = asyncio.create_task(client.get("/"))
        done, _ = await asyncio.wait({getting}, timeout=0.5)
        assert not done
        for _ in range(20):  # the server needs some as well
            few_descriptors.pop().close()
        assert (await getting).status_code == 200


async def test_request_waits_for_a_file_descriptor_in_vain(few_descriptors: list[socket.socket]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with talking_to(script, read_seconds=0.5) as (client, _), asyncio.timeout(10):
        take_all(few_descriptors)
        with pytest.raises(httpx.PoolTimeout, match="no file descriptor"):
            await client.get("/")


async def test_requests_beyond_what_descriptors_allow_wait_for_their_turn(few_descriptors: list[Any]) -> None:
    open_now, most = 0, 0

    async def script(peer: Peer) -> None:
        nonlocal open_now, most
        while True:
            await peer.request()
            open_now += 1
            most = max(most, open_now)
            await asyncio.sleep(0.01)
            open_now -= 1
            await peer.send(EMPTY)

    async with talking_to(script, read_seconds=20) as (client, server):
        answers = await asyncio.gather(*(client.get("/") for _ in range(300)))
        assert [answer.status_code for answer in answers] == [200] * 300
        assert most <= server.connections <= connections_allowed() == (256 - RESERVED) // 2


async def test_turns_come_back_after_failures_and_cancels(few_descriptors: list[Any]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVED + 2, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    hangs = False

    async def script(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/drop" in head:
            return
        if b"/hang" in head:
            nonlocal hangs
            hangs = True
            await peer.is_left()
            return
        await peer.send(EMPTY)
        await peer.is_left()

    async with talking_to(script) as (client, _):
        assert connections_allowed() == 1
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/drop")
        hanging = asyncio.create_task(client.get("/hang"))
        await until(lambda: hangs)
        waiting = asyncio.create_task(client.get("/waits"))
        await turns_of_the_loop()
        waiting.cancel()
        hanging.cancel()
        await asyncio.gather(waiting, hanging, return_exceptions=True)
        assert (await client.get("/")).status_code == 200


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_of_descriptors_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(limits[1], 65_535), limits[1])


def test_lack_of_descriptors_is_told_from_a_refusal() -> None:
    assert lacks_descriptors(OSError(errno.ENFILE, "x"))
    assert not lacks_descriptors(ConnectionRefusedError(errno.ECONNREFUSED, "x"))
