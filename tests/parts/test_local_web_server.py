"""What one client can take up of a web server here, and that a server which is not there is not said to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

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


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status that comes before the connection is closed; 0 for none."""
    async with asyncio.timeout(SECONDS):
        words = (await reader.read()).split()
    return int(words[1]) if words else 0


@pytest.mark.parametrize("endless", [b"x-header: 1\r\n" * 1000, b"x" * 10_000], ids=["headers", "one header"])
async def test_endless_headers_are_refused(endless: bytes) -> None:
    async with serving(app_of(), "127.0.0.1", 0) as port:
        reader, writer = await connect(port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-first: ")
        sent = 0
        answer = asyncio.create_task(status_of(reader))
        try:
            while not answer.done() and sent < 50e6:
                writer.write(endless)
                await writer.drain()
                sent += len(endless)
        except ConnectionError:
            pass
        assert sent < 10e6
        with suppress(ConnectionError):  # it may be closed with more on its way, which resets it
            assert await answer == 431
        writer.close()


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
        reader, writer = await connect(port)
        writer.write(sent)
        assert await status_of(reader) == 408
        writer.close()


async def test_dripping_headers_do_not_keep_a_connection_open() -> None:
    async with serving(app_of(), "127.0.0.1", 0, bounds=Bounds(head_seconds=0.3)) as port:
        reader, writer = await connect(port)
        writer.write(b"GET / HTTP/1.1\r\n")
        answer = asyncio.create_task(status_of(reader))
        while not answer.done():
            writer.write(b"x: 1\r\n")
            await asyncio.sleep(0.05)
        assert await answer == 408
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
        assert await status_of(reader) == 503
        for _, writer in within:
            writer.write(b"POST /length HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        assert [await status_of(reader) for reader, _ in within] == [200, 200]
        for writer in (beyond, *(writer for _, writer in within)):
            writer.close()


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
