"""What one client can take up of a web server here, and that a server which is not there is not said to be."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httptools
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

from common import web_server
from common.web_server import Bounds, WebServerError, serving

pytestmark = pytest.mark.anyio

SECONDS = 20.0  # far longer than anything here takes


def app_of(given_up: asyncio.Event | None = None) -> FastAPI:
    app = FastAPI()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"body": body.decode(), "headers": dict(request.headers)}

    @app.get("/events")
    async def two_events() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            for event in (b"one\n", b"two\n"):
                await asyncio.sleep(0)
                yield event

        return StreamingResponse(events())

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 100_000
            finally:
                if given_up:
                    given_up.set()

        return StreamingResponse(events())

    @app.get("/slow")
    async def slow() -> PlainTextResponse:
        await asyncio.sleep(0.5)
        return PlainTextResponse("late")

    return app


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


@dataclass
class Answer:
    """One answer, as httptools parses it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    @property
    def error(self) -> dict[str, Any]:
        """What a refusal says, in OpenAI's form."""
        assert self.headers["content-type"] == "application/json"
        [(key, error)] = json.loads(self.body).items()
        assert key == "error"
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == self.status
        return dict(error)


async def answer_from(reader: asyncio.StreamReader) -> Answer:
    """The answer that comes before the connection is closed."""
    async with asyncio.timeout(SECONDS):
        data = await reader.read()
    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    parser.feed_data(data)
    answer.status = parser.get_status_code()
    return answer


async def answer_to(port: int, *pieces: bytes) -> Answer:
    """The answer to a request that is sent in these pieces, each in a packet of its own."""
    reader, writer = await connect(port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.05)
    answer = await answer_from(reader)
    writer.close()
    return answer


@pytest.mark.parametrize("endless", [b"x-header: 1\r\n" * 1000, b"x" * 10_000], ids=["headers", "one header"])
async def test_endless_headers_are_refused(endless: bytes) -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        reader, writer = await connect(port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-first: ")
        sent = 0
        answer = asyncio.create_task(answer_from(reader))
        try:
            while not answer.done() and sent < 50e6:
                writer.write(endless)
                await writer.drain()
                sent += len(endless)
        except ConnectionError:
            pass
        assert sent < 10e6
        with suppress(ConnectionError):  # it may be closed with more on its way, which resets it
            assert (await answer).status == 431
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /events HTTP/1.1\r\nx-large: " + b"x" * 900 + b"\r\n", 200),
        (b"GET /events HTTP/1.1\r\nx-large: " + b"x" * 1024 + b"\r\n", 431),
        (b"GET /events HTTP/1.1\r\n" + b"x: 1\r\n" * 200, 431),
        (b"GET /events?" + b"x" * 1024 + b" HTTP/1.1\r\n", 431),
    ],
    ids=["fits", "one header", "headers", "query"],
)
async def test_headers_that_arrive_at_once_have_the_same_limit(head: bytes, status: int) -> None:
    async with serving(app_of(), "127.0.0.1", 0, bounds=Bounds(head_bytes=1024)) as port:
        answer = await answer_to(port, head + b"connection: close\r\n\r\n")
        assert answer.status == status
        if status == 431:
            assert "1024 bytes" in answer.error["message"]


async def test_endless_trailers_of_a_body_are_refused() -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        reader, writer = await connect(port)
        writer.write(b"POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        sent = 0
        try:
            while sent < 50e6 and not reader.at_eof():
                writer.write(b"x-trailer: 1\r\n" * 1000)
                await writer.drain()
                sent += 14_000
        except ConnectionError:
            pass
        assert sent < 10e6
        writer.close()


async def test_body_in_the_smallest_of_chunks_is_taken() -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        reader, writer = await connect(port)
        writer.write(b"POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            assert (await reader.read()).endswith(b"100000")
        writer.close()


@pytest.mark.parametrize(
    ("sent", "bounds"),
    [
        (b"", Bounds(head_seconds=0.1)),
        (b"GET / HTTP/1.1\r\nhost:", Bounds(head_seconds=0.1)),
        (b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc", Bounds(body_seconds=0.1)),
    ],
    ids=["nothing", "half of the headers", "half of the body"],
)
async def test_connection_with_half_a_request_is_closed(sent: bytes, bounds: Bounds) -> None:
    async with serving(app_of(), "127.0.0.1", 0, bounds=bounds) as port:
        answer = await answer_to(port, sent)
        assert answer.status == 408
        assert ("body" if b"POST" in sent else "line and headers") in answer.error["message"]
        assert "within 0.1 s" in answer.error["message"]


async def test_dripping_headers_do_not_keep_a_connection_open() -> None:
    async with serving(app_of(), "127.0.0.1", 0, bounds=Bounds(head_seconds=0.3)) as port:
        reader, writer = await connect(port)
        writer.write(b"GET / HTTP/1.1\r\n")
        answer = asyncio.create_task(answer_from(reader))
        while not answer.done():
            writer.write(b"x: 1\r\n")
            await asyncio.sleep(0.05)
        assert (await answer).status == 408
        writer.close()


async def test_slow_answer_and_the_next_request_behind_it_are_not_cut_off() -> None:
    """The bounds are on the client's part alone; what waits behind a slow answer is not late."""
    bounds = Bounds(head_seconds=0.2, body_seconds=0.2)
    async with serving(app_of(), "127.0.0.1", 0, bounds=bounds) as port:
        reader, writer = await connect(port)
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(SECONDS):
            assert (await reader.read()).count(b"late") == 3
        writer.close()


async def test_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    given_up = asyncio.Event()
    async with serving(app_of(given_up), "127.0.0.1", 0, bounds=Bounds(stall_seconds=0.2)) as port:
        _, writer = await connect(port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(given_up.wait(), SECONDS)
        writer.transport.abort()


async def test_more_connections_than_allowed_are_refused() -> None:
    async with serving(app_of(), "127.0.0.1", 0, bounds=Bounds(connections=2)) as port:
        within = [await connect(port) for _ in range(2)]
        reader, beyond = await connect(port)
        refused = await answer_from(reader)
        assert refused.status == 503
        assert refused.error["message"].startswith("all 2 connections")
        assert int(refused.headers["retry-after"]) > 0
        for _, writer in within:
            writer.write(b"POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        assert [(await answer_from(reader)).status for reader, _ in within] == [200, 200]
        for writer in (beyond, *(writer for _, writer in within)):
            writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000, 503),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n" + b"x" * 200_000, 400),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000, 431),
    ],
    ids=["no connection", "not HTTP", "headers"],
)
async def test_refused_client_reads_why_although_more_of_its_request_is_on_the_way(sent: bytes, status: int) -> None:
    connections = 0 if status == 503 else 10
    async with serving(app_of(), "127.0.0.1", 0, bounds=Bounds(connections=connections, head_bytes=1024)) as port:
        # All of it is in the server's socket before the server looks at the connection.
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setblocking(False)
            sent = sent[connection.send(sent) :]
            reader, writer = await asyncio.open_connection(sock=connection)
            writer.write(sent)
            assert (await answer_from(reader)).status == status
            writer.close()


async def test_refused_client_that_goes_on_sending_is_cut_off() -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        _, writer = await connect(port)
        sent = 0
        with suppress(ConnectionError):
            while sent < 50e6:
                writer.write(b"not HTTP " * 10_000)
                await writer.drain()
                sent += 90_000
        assert sent < 20e6
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["headers", "TLS", "CONNECT"],
)
async def test_what_is_not_a_request_is_told_so_in_the_form_of_other_errors(request_bytes: bytes) -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        assert (await answer_to(port, request_bytes)).error["type"] == "invalid_request_error"


OFFER = (
    b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
)
LENGTH, CHUNKED = b"content-length: 5\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"
LAST = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlast"


@pytest.mark.parametrize(
    "pieces",
    [
        (OFFER + LENGTH + b"hello" + LAST,),
        (OFFER + LENGTH, b"hello", LAST),
        (OFFER + LENGTH + b"he", b"llo" + LAST),
        (OFFER[:60], OFFER[60:] + CHUNKED + b"2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n", LAST),
        (OFFER + LENGTH + b"hello" + OFFER + LENGTH + b"again", LAST),
    ],
    ids=["at once", "head and body", "cut in the body", "chunks", "twice"],
)
async def test_request_that_offers_another_protocol_keeps_its_body(pieces: tuple[bytes, ...]) -> None:
    """As Java's HttpClient and `curl --http2` do. The body must not become the next request on the connection."""
    async with serving(app_of(), "127.0.0.1", 0) as port:
        answer = await answer_to(port, *pieces)  # all of them, one behind the other
        bodies = [json.loads(line)["body"] for line in answer.body.replace(b"}}{", b"}}\n{").splitlines()]
        assert bodies == ["hello", *["again"] * (b"again" in pieces[0]), "last"]
        assert b"http2-settings" in answer.body
        assert b'"upgrade"' not in answer.body


async def test_trailers_do_not_become_headers() -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving(app_of(), "127.0.0.1", 0) as port:
        answer = await answer_to(port, head + b"2\r\nhi\r\n0\r\nauthorization: x\r\n\r\n")
        assert json.loads(answer.body)["body"] == "hi"
        assert "authorization" not in json.loads(answer.body)["headers"]


@pytest.mark.parametrize("path", ["/events", "/slow"])
async def test_http_1_0_gets_no_chunks(path: str) -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        reader, writer = await connect(port)
        writer.write(b"GET %b HTTP/1.0\r\n\r\n" % path.encode())
        async with asyncio.timeout(SECONDS):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"transfer-encoding" not in head
    assert (b"content-length: 4" in head) == (path == "/slow")
    assert body == (b"one\ntwo\n" if path == "/events" else b"late")


async def test_app_that_does_not_start_raises_instead_of_being_served() -> None:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        raise RuntimeError("no")
        yield

    with pytest.raises(WebServerError, match="did not start"):
        async with serving(FastAPI(lifespan=lifespan), "127.0.0.1", 0):
            pytest.fail("nobody listens")


async def test_server_that_breaks_ends_what_it_was_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def break_down(self: object, counter: int) -> bool:
        raise RuntimeError("no")

    async def serve() -> None:
        async with serving(app_of(), "127.0.0.1", 0):
            monkeypatch.setattr(web_server._Server, "on_tick", break_down)
            await asyncio.sleep(60)

    async with asyncio.timeout(SECONDS):
        with pytest.raises(WebServerError, match="broke"):
            await serve()


async def test_error_and_cancellation_pass_through_unchanged() -> None:
    with pytest.raises(KeyError):
        async with serving(app_of(), "127.0.0.1", 0):
            raise KeyError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), serving(app_of(), "127.0.0.1", 0):
            await asyncio.sleep(60)
