"""What reaches the engine of each kind of request, of the first one for a path and of those after it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.deliver import Upstream, create_client
from gateway.request import UpstreamRequest
from tests.parts.test_transport import OK, Peer, Server

pytestmark = pytest.mark.anyio

CHAT, JSON = "/v1/chat/completions", b"application/json"
TRACED = ((b"Content-Type", JSON), (b"traceparent", b"00-1-2-01"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("request_", "line", "body", "headers"),
    [
        (UpstreamRequest("POST", CHAT, b'{"a":1}', True), f"POST {CHAT}", b'{"a":1}', {"content-type": JSON}),
        (UpstreamRequest("POST", CHAT, "ä".encode() * 9), f"POST {CHAT}", "ä".encode() * 9, {"content-type": JSON}),
        (UpstreamRequest("PUT", "/x", b"{}", query="a=%20"), "PUT /x?a=%20", b"{}", {"content-type": JSON}),
        (UpstreamRequest("GET", "/v1/models"), "GET /v1/models", b"", {"content-type": None, "content-length": None}),
        (UpstreamRequest("POST", CHAT), f"POST {CHAT}", b"", {"content-type": None, "content-length": b"0"}),
        (
            UpstreamRequest("POST", CHAT, b"{}", headers=TRACED),
            f"POST {CHAT}",
            b"{}",
            {"content-type": JSON, "traceparent": b"00-1-2-01"},
        ),
    ],
    ids=["chat", "other body", "query", "no body", "POST without a body", "own headers"],
)
async def test_request_reaches_the_engine_as_it_is_meant(
    request_: UpstreamRequest, line: str, body: bytes, headers: dict[str, bytes | None]
) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK + b"Content-Length: 2\r\n\r\nok")

    server = Server(script)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()
        async with create_client(f"http://{host}:{port}", api_key="the-key", request_timeout_seconds=5) as client:
            upstream = Upstream(client, None, stream_flush_seconds=None, max_response_bytes=1)  # type: ignore[arg-type]
            for _ in range(3):
                async with upstream._send(request_) as answer:
                    assert (await answer.aread(), answer.status_code) == (b"ok", 200)
    assert server.connections == 1
    for head, sent in seen:
        first, *lines = head.decode().strip().split("\r\n")
        got = httpx.Headers([(name, value) for name, _, value in (text.partition(": ") for text in lines)])
        assert (first, sent) == (f"{line} HTTP/1.1", body)
        expected = {"content-length": str(len(body)).encode()} if body else {}
        expected |= {
            "authorization": b"Bearer the-key",
            "accept-encoding": b"identity",
            "host": f"{host}:{port}".encode(),
        }
        for name, value in {**expected, **headers}.items():
            assert got.get(name) == (None if value is None else value.decode())
        assert len(lines) == len({text.partition(":")[0].lower() for text in lines})  # none comes twice
    assert len(seen) == 3
