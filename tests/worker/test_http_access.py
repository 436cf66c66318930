"""Plain HTTP: who may call, from which pages, and how much one client can take up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from scripts.worker_process import Worker, running_http_worker

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = "sk-key-of-clients"
PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
async def worker() -> AsyncIterator[Worker]:
    environment = {"API_KEY": KEY, "CORS_ORIGINS": PAGE, "RUNPOD_LOG_LEVEL": "DEBUG"}
    async with running_http_worker(environment) as worker:
        yield worker


@pytest.fixture(scope="module")
async def client(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=worker.http_url, timeout=20, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "name", "value", "status"),
    [
        ("/v1/models", "Authorization", f"Bearer {KEY}".encode(), 200),
        ("/v1/models", "Authorization", f"bearer  {KEY}".encode(), 200),
        ("/v1/models", "Authorization", f"Bearer {KEY}é".encode(), 401),
        ("/v1/models", "Authorization", KEY.encode(), 401),
        ("/v1/models", "Authorization", f"Bearer {KEY}x".encode(), 401),
        ("/v1/models", "Authorization", b"Bearer", 401),
        ("/v1/models", "x-api-key", KEY.encode(), 401),
        ("/v1/models", "X-Nothing", b"1", 401),
        ("/v1/messages", "x-api-key", KEY.encode(), 200),
        ("/v1/messages", "Authorization", f"Bearer {KEY}".encode(), 200),
        ("/v1/messages", "x-api-key", b"sk-wrong", 401),
        ("/flush_cache", "X-Nothing", b"1", 401),
        ("/nothing", "X-Nothing", b"1", 401),
    ],
)
async def test_key_is_asked_for(client: httpx.AsyncClient, path: str, name: str, value: bytes, status: int) -> None:
    method = "POST" if path == "/v1/messages" else "GET"
    headers = [(name.encode(), value)]
    answer = await client.request(method, path, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["type"] == "authentication_error"
        assert ("type" in answer.json()) == (path == "/v1/messages")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_health_needs_no_key_and_the_key_is_in_no_log(worker: Worker, client: httpx.AsyncClient) -> None:
    for path in ("/ping", "/health", "/ready", "/health/live", "/health/ready"):
        assert (await client.get(path)).status_code == 200
    await client.get("/v1/models", headers=[(b"Authorization", f"Bearer {KEY}".encode())])
    assert (await worker.engine_requests())[-1]["headers"]["authorization"] == f"Bearer {KEY}"
    assert KEY not in worker.log
    assert "sk-wrong" not in worker.log


async def test_sdks_reach_it_with_their_key() -> None:
    async with running_http_worker({"API_KEY": "sk-ascii-key"}) as worker:
        async with openai.AsyncOpenAI(
            base_url=f"{worker.http_url}/v1", api_key="sk-ascii-key", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["word "] * 3
            with pytest.raises(openai.APIError, match="cut off"):
                async for _ in await client.chat.completions.create(
                    model="m", messages=HELLO, stream=True, extra_body={"script": {"then": "crash"}}
                ):
                    pass
        async with openai.AsyncOpenAI(base_url=f"{worker.http_url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        async with anthropic.AsyncAnthropic(base_url=worker.http_url, api_key="wrong", max_retries=0) as other:
            with pytest.raises(anthropic.AuthenticationError, match="x-api-key"):
                await other.messages.create(model="m", max_tokens=5, messages=HELLO)


async def test_pages_may_call_if_their_origin_is_named(client: httpx.AsyncClient) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = await client.options("/v1/chat/completions", headers={"Origin": PAGE, **ask})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    other = await client.options("/v1/chat/completions", headers={"Origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in other.headers
    answer = await client.get("/v1/models", headers={"Origin": PAGE})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE, "the page may read why"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_headers_are_bounded(worker: Worker, client: httpx.AsyncClient, path: str) -> None:
    async with httpx.AsyncClient(base_url=worker.http_url, timeout=20, trust_env=False) as other:
        answer = await other.post(path, headers={"X": "y" * 70_000}, json={})
    assert answer.status_code == 431
    assert "65536 bytes" in answer.json()["error"]["message"]
    assert answer.json().get("type") == ("error" if path == "/v1/messages" else None)
    assert (await client.get("/ping")).status_code == 200


async def test_body_that_is_announced_too_large_is_refused_before_it_is_sent(worker: Worker) -> None:
    host, port = worker.http_url.removeprefix("http://").split(":")
    for length in ("99999999999", "30000000\r\nExpect: 100-continue"):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.1 413 ")
        writer.close()
