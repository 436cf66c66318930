"""The transport to the engine, against a server that sends exactly the bytes that a test wants."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from sglang_engine.transport import EngineTransport
from tests.waiting import turns_of_the_loop, until

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Script = Callable[["Peer"], Awaitable[None]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: their transports are not the same under pauses and closes."""
    return "asyncio", {"use_uvloop": request.param}


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The head and the body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lengths = [line[16:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: ")]
        return head, await self.reader.readexactly(int(lengths[0])) if lengths else b""

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.005)

    async def is_left(self) -> bool:
        """Whether the client closes this connection."""
        with suppress(ConnectionError):
            return not await asyncio.wait_for(self.reader.read(1), 5)
        return True


class Server:
    """Runs one script a connection, and counts them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client left
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.closed += 1


@asynccontextmanager
async def talking_to(
    script: Script, *, keepalive_seconds: float = 5.0, read_seconds: float = 5.0
) -> AsyncGenerator[tuple[httpx.AsyncClient, Server], None]:
    peer = Server(script)
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    transport = EngineTransport(host, port, keepalive_seconds=keepalive_seconds)
    url, timeout = f"http://{host}:{port}", httpx.Timeout(read_seconds, connect=5.0)
    async with httpx.AsyncClient(transport=transport, base_url=url, timeout=timeout, trust_env=False) as client:
        yield client, peer
    server.close()


def answering(*answers: bytes) -> Script:
    """Each request gets the next of the answers, in pieces of one byte."""

    async def script(peer: Peer) -> None:
        for answer in answers:
            await peer.request()
            for byte in answer:
                peer.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            await peer.writer.drain()
        await peer.reader.read()

    return script


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", 200, b"hello"),
        (OK + b"Content-Length: 0\r\n\r\n", 200, b""),
        (CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", 200, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", 404, b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok"),
    ],
)
async def test_whole_answers_byte_by_byte(answer: bytes, status: int, body: bytes) -> None:
    async with talking_to(answering(answer)) as (client, _):
        response = await client.get("/health")
    assert (response.status_code, response.content) == (status, body)


async def test_request_is_sent_as_httpx_wrote_it() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(OK + b"Content-Length: 0\r\n\r\n")

    body = b"x" * 3_000_000
    async with talking_to(script) as (client, _):
        await client.post("/v1/ä?a=1&b=%20", content=body, headers={"X-Name": "value"})
    head, sent = seen[0]
    assert head.startswith(b"POST /v1/%C3%A4?a=1&b=%20 HTTP/1.1\r\n")
    assert b"\r\nX-Name: value\r\n" in head
    assert head.lower().count(b"host:") == 1
    assert sent == body


async def test_stream_is_handed_over_as_it_comes() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"6\r\ndata: \r\n", b"1\r\n1\r\n")
        await go_on.wait()
        await peer.send(b"1\r\n2\r\n0\r\n\r\n")

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        received = b""
        async for piece in response.aiter_raw():
            received += piece
            if received == b"data: 1":
                go_on.set()
    assert received == b"data: 12"


async def test_answer_without_a_length_ends_with_its_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\n", b"all ", b"of it")

    async with talking_to(script) as (client, _):
        assert (await client.get("/")).content == b"all of it"


async def test_connection_is_used_again() -> None:
    answer = OK + b"Content-Length: 2\r\n\r\nok"
    async with talking_to(answering(answer, CHUNKED + b"1\r\nx\r\n0\r\n\r\n", answer)) as (client, server):
        assert [(await client.get("/")).text for _ in range(3)] == ["ok", "x", "ok"]
    assert server.connections == 1


@pytest.mark.parametrize("answer", [OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
async def test_connection_is_not_used_again_when_the_server_says_so(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    async with talking_to(script) as (client, server):
        assert [(await client.get("/")).status_code for _ in range(2)] == [200, 200]
    assert server.connections == 2


async def test_connection_that_lay_idle_too_long_is_not_used_again() -> None:
    async with talking_to(answering(OK + b"Content-Length: 0\r\n\r\n"), keepalive_seconds=0.05) as (client, server):
        await client.get("/")
        await asyncio.sleep(0.1)
        await client.get("/")
    assert server.connections == 2


async def test_connection_that_the_server_closed_is_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"Content-Length: 0\r\n\r\n")

    async with talking_to(script) as (client, server):
        for number in range(1, 4):
            await client.get("/")
            await until(lambda number=number: server.closed == number)  # type: ignore[misc]
            await turns_of_the_loop()
    assert server.connections == 3


ASKED = OK + b"X-Asked: yes\r\nContent-Length: 2\r\n\r\nok"
UNASKED = OK + b"X-Asked: no\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("sent", [[ASKED, UNASKED], [ASKED + UNASKED]], ids=["later", "at once"])
async def test_what_comes_unasked_is_not_taken_for_an_answer(sent: list[bytes]) -> None:
    all_sent = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*sent)
        all_sent.set()
        await peer.is_left()

    async with talking_to(script) as (client, server):
        for _ in range(2):
            response = await client.get("/")
            assert (response.headers["X-Asked"], response.text) == ("yes", "ok")
            await all_sent.wait()
            all_sent.clear()
            await turns_of_the_loop()
    assert server.connections == 2


async def test_many_requests_have_a_connection_each() -> None:
    everyone_is_here = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if server.connections == 120:
            everyone_is_here.set()
        await everyone_is_here.wait()
        await peer.send(OK + b"Content-Length: 0\r\n\r\n")

    async with talking_to(script) as (client, server):
        await asyncio.gather(*(client.get("/") for _ in range(120)))  # httpx itself would open 100


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (OK, httpx.RemoteProtocolError),
        (OK + b"Content-Length: 9\r\n\r\nhalf", httpx.RemoteProtocolError),
        (CHUNKED + b"4\r\nhalf\r\n", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", httpx.RemoteProtocolError),
        (CHUNKED + b"zz\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", httpx.RemoteProtocolError),
    ],
)
async def test_answer_that_is_none_or_not_whole(sent: bytes, error: type[Exception]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)

    async with talking_to(script) as (client, _):
        with pytest.raises(error):
            await client.get("/")


async def test_what_came_before_the_break_is_handed_over() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"4\r\nhalf\r\n")

    async with talking_to(script) as (client, server), client.stream("GET", "/") as response:
        await until(lambda: server.closed)
        await turns_of_the_loop()
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"half"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(pieces)


async def test_reset_connection_is_a_read_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        connection = peer.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
        peer.writer.transport.abort()

    async with talking_to(script) as (client, _):
        with pytest.raises(httpx.ReadError):
            await client.post("/", content=b"x" * 10)


async def test_reset_of_a_stream_whose_reader_is_behind_is_a_read_error_after_what_came() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, *[b"1\r\nx\r\n"] * 9)
        connection = peer.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.writer.transport.abort()

    received: list[bytes] = []

    async def read(response: httpx.Response) -> None:
        async for piece in response.aiter_raw():
            received.append(piece)

    async with talking_to(script) as (client, server), client.stream("GET", "/") as response:
        await until(lambda: server.closed)
        with pytest.raises(httpx.ReadError):
            await read(response)
    assert received


async def test_stream_whose_reader_is_behind_is_read_in_one_go() -> None:
    """Whatever of it the event loop has read already: the rest is taken out of the socket, and nothing is late."""
    sent, go_on = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, *[b"1\r\nx\r\n"] * 9)
        sent.set()
        await go_on.wait()
        await peer.send(b"1\r\ny\r\n0\r\n\r\n")

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        pieces = response.aiter_raw()
        await sent.wait()
        assert await anext(pieces) == b"x" * 9
        go_on.set()
        assert [piece async for piece in pieces] == [b"y"]


@pytest.mark.parametrize("sent", [b"", CHUNKED + b"1\r\nx\r\n"])
async def test_silence_is_a_read_timeout_and_closes_the_connection(sent: bytes) -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        if await peer.is_left():
            left.set()

    async with talking_to(script, read_seconds=0.1) as (client, _):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/")
        await asyncio.wait_for(left.wait(), 5)


async def test_nobody_listening_is_a_connect_error() -> None:
    transport = EngineTransport("127.0.0.1", 1, keepalive_seconds=1)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/")


@pytest.mark.parametrize("sent", [b"", CHUNKED + b"1\r\nx\r\n"])
async def test_cancelled_request_closes_its_connection(sent: bytes) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(sent)
        asked.set()
        if await peer.is_left():
            left.set()

    async with talking_to(script) as (client, _):
        request = asyncio.create_task(client.get("/"))
        await asked.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.wait_for(left.wait(), 5)


async def test_answer_closed_half_way_closes_its_connection() -> None:
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, b"1\r\nx\r\n")
        if await peer.is_left():
            left.set()

    async with talking_to(script) as (client, _):
        async with client.stream("GET", "/") as response:
            assert response.status_code == 200
        await asyncio.wait_for(left.wait(), 5)


async def test_answer_that_nobody_reads_holds_the_server_back() -> None:
    size = 64 * 1024 * 1024
    is_sent = asyncio.Event()
    pieces = 0

    async def script(peer: Peer) -> None:
        nonlocal pieces
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=0)
        peer.writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            peer.writer.write(bytes(size // 64))
            await peer.writer.drain()
            pieces += 1
        is_sent.set()

    async with talking_to(script) as (client, _), client.stream("GET", "/") as response:
        before = -1
        while pieces > before:  # until the server gets no further
            before = pieces
            await asyncio.sleep(0.1)
        assert not is_sent.is_set()
        received = 0
        async for piece in response.aiter_raw():
            received += len(piece)
            assert len(piece) < 1024 * 1024  # as it comes from the socket, not gathered here
    assert received == size
    assert is_sent.is_set()
