"""Plain HTTP: what goes through to the engine and back, and what does not."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from scripts.worker_process import Worker, running_http_worker
from tests.answers import events_of

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
async def worker() -> AsyncIterator[Worker]:
    async with running_http_worker({"ALLOWED_ROUTES": "/server_info"}) as worker:
        yield worker


@pytest.fixture(scope="module")
async def client(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=worker.http_url, timeout=20, trust_env=False) as client:
        yield client


async def last_request(worker: Worker) -> dict[str, Any]:
    return (await worker.engine_requests())[-1]


async def raw_answer(worker: Worker, request: bytes) -> tuple[int, bytes]:
    """The status and body of the answer to bytes that no client would send as they are."""
    reader, writer = await asyncio.open_connection(*worker.http_url.removeprefix("http://").split(":"))
    writer.write(request)
    head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/health/live", "/health/ready"])
async def test_health_is_200_once_the_engine_is_warm(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    assert (await client.head(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/org/model"),
        ("GET", "/v1/models/org%2Fmodel:adapter"),
        ("GET", "/model_info"),
        ("GET", "/server_info"),  # ALLOWED_ROUTES
        ("POST", "/v1/chat/completions"),
        ("POST", "/generate"),
        ("PUT", "/generate"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("DELETE", "/v1/responses/resp_1"),
    ],
)
async def test_open_routes_go_through_as_they_are(
    worker: Worker, client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, f"{path}?limit=5&q=a%20b")
    assert answer.status_code == 200
    assert answer.json()["path"] == f"{path}?limit=5&q=a%20b"
    assert (await last_request(worker))["method"] == method


async def test_body_is_not_rewritten(worker: Worker, client: httpx.AsyncClient) -> None:
    body = b'{ "text" : "\\u00e9 \xc3\xa9 1e400", "big": 12345678901234567890123, "x": 1.50 }'
    await client.post("/generate", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    seen = await last_request(worker)
    assert seen["headers"]["content-type"] == "application/json; charset=utf-8"
    assert int(seen["headers"]["content-length"]) == len(body)
    assert seen["body"] == json.loads(body)


async def test_headers_for_the_hop_and_the_clients_key_stay_here(worker: Worker, client: httpx.AsyncClient) -> None:
    await client.post(
        "/v1/chat/completions",
        json=CHAT,
        headers={
            "Authorization": "Bearer of-the-client",
            "Cookie": "session=1",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "1",
            "TE": "trailers",
            "Origin": "https://example.com",
            "X-SMG-Routing-Key": "tenant-7",
            "X-Request-Id": "mine-1",
        },
    )
    headers = (await last_request(worker))["headers"]
    assert headers["x-smg-routing-key"] == "tenant-7"
    assert headers["x-request-id"] == "mine-1"
    assert not {"authorization", "cookie", "x-hop", "te", "origin"} & set(headers)


async def test_answer_keeps_status_body_and_type(client: httpx.AsyncClient) -> None:
    script = {"status": 418, "body": "short and stout", "content_type": "text/x-teapot"}
    answer = await client.post("/generate", json={"script": script})
    assert (answer.status_code, answer.text) == (418, "short and stout")
    assert answer.headers["content-type"] == "text/x-teapot"
    assert answer.headers["x-request-id"].startswith("req_")


async def test_error_of_the_engine_shows_no_internals(client: httpx.AsyncClient) -> None:
    message = 'bad value\n  File "/usr/lib/python3/site-packages/sglang/x.py", line 3\n    raise'
    body = json.dumps({"object": "error", "message": message, "code": 400, "param": None})
    answer = await client.post("/generate", json={"script": {"status": 400, "body": body}})
    assert answer.status_code == 400
    assert answer.json() == {"object": "error", "message": "bad value", "code": 400, "param": None}


async def test_events_come_one_by_one_while_the_engine_writes_them(client: httpx.AsyncClient) -> None:
    times: list[float] = []
    body = CHAT | {"stream": True, "script": {"pause": 0.3, "events": 4}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for _ in answer.aiter_raw():
            times.append(asyncio.get_running_loop().time())
    assert len(times) >= 4
    assert times[3] - times[0] > 0.5, "they were held back"


async def test_only_whole_events_are_sent(client: httpx.AsyncClient) -> None:
    body = CHAT | {"stream": True, "script": {"chunk_bytes": 7, "text": "日本語 "}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for chunk in answer.aiter_raw():
            assert chunk.endswith(b"\n\n")


async def test_events_are_the_engines_bytes(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": True, "script": {"text": "\u2028"}})
    assert events_of([answer.text])[-1] == "[DONE]"
    assert answer.text.count("\u2028") == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/flush_cache", 403),
        ("POST", "/update_weights_from_disk", 403),
        ("GET", "/get_server_info", 403),
        ("GET", "/hicache/storage-backend", 403),
        ("GET", "/health_generate", 403),
        ("POST", "/abort_request", 403),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/../flush_cache", 404),
        ("GET", "/v1/%2e%2e/flush_cache", 404),
        ("GET", "/v1/models/..%2F..%2Fflush_cache", 404),
        ("GET", "/v1/models/a%00b", 404),
        ("GET", "/v1/models/", 404),
        ("OPTIONS", "/v1/models", 405),
        ("PATCH", "/v1/models", 405),
        ("HEAD", "/v1/models", 405),
        ("GET", "/v1/models?q=%zz", 400),
    ],
)
async def test_everything_else_is_refused(worker: Worker, method: str, path: str, status: int) -> None:
    before = len(await worker.engine_requests())
    seen, body = await raw_answer(worker, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert seen == status
    if method != "HEAD":
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == status
    assert len(await worker.engine_requests()) == before


async def test_what_the_engine_s_framework_refuses_has_the_form_of_other_errors(client: httpx.AsyncClient) -> None:
    """`/v1/…` is open; which paths there are, and which methods each takes, SGLang's router knows."""
    for path, status, body in (
        ("/generate", 404, '{"detail":"Not Found"}'),
        ("/v1/messages", 405, '{"detail":"Method Not Allowed"}'),
        ("/v1/messages", 500, "Internal Server Error"),
    ):
        script = {"status": status, "body": body, "allow": "GET, PUT"}
        answer = await client.post(path, json={"script": script})
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == status
        assert ("type" in answer.json()) == (path == "/v1/messages")
        assert answer.headers.get("allow") == ("GET, PUT" if status == 405 else None)
    own = json.dumps({"object": "error", "message": "no such model", "code": 404})
    answer = await client.post("/generate", json={"script": {"status": 404, "body": own}})
    assert answer.text == own, "an answer of a route's own stays as it is"


async def test_refusals_on_messages_have_anthropics_shape(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/messages", json=CHAT | {"n": 1000})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = await client.post("/v1/messages/count_tokens", content=b"{}", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert answer.json()["type"] == "error"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"n": 129}', 400, "MAX_N"),
        (b'{"n": 129, "n": 1000}', 400, "MAX_N"),
        (b'{"\\u006e": 129}', 400, "MAX_N"),
        (b'{"n": 129, "x": NaN}', 400, "MAX_N"),
        ('{"n": 129}'.encode("utf-16"), 400, "MAX_N"),
        (b'{"n": "129"}', 400, "MAX_N"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "MAX_JSON_DEPTH"),
        (b"[" * 100_000, 400, "MAX_JSON_DEPTH"),
        (b'{"input_ids": [-1]}', 400, "token id"),
        (b'{"text": "' + b"x" * (20 * 1024 * 1024) + b'"}', 413, "MAX_REQUEST_BYTES"),
    ],
)
async def test_limits_are_those_of_jobs(client: httpx.AsyncClient, body: bytes, status: int, says: str) -> None:
    answer = await client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


async def test_large_bodies_go_through_and_are_checked(worker: Worker, client: httpx.AsyncClient) -> None:
    text = "x" * (2 * 1024 * 1024)
    answer = await client.post("/generate", json={"text": text})
    assert answer.json()["echo"]["text"] == text
    answer = await client.post("/generate", json={"text": text, "sampling_params": {"n": 1000}})
    assert answer.status_code == 400


async def test_compressed_bodies_are_refused(client: httpx.AsyncClient) -> None:
    body = gzip.compress(b'{"text": "x"}')
    answer = await client.post("/generate", content=body, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


async def test_client_that_hangs_up_aborts_its_generation_within_a_second(
    worker: Worker, client: httpx.AsyncClient
) -> None:
    for stream in (True, False):
        body = CHAT | {"stream": stream, "script": {"then": "hang", "pause": 0 if stream else 600}}
        with pytest.raises(httpx.TimeoutException):
            await client.post("/v1/chat/completions", json=body, timeout=1)
        async with asyncio.timeout(1):
            while (await last_request(worker))["end"] != "aborted":
                await asyncio.sleep(0.02)


async def test_slow_reader_slows_down_the_engine_and_nobody_else(worker: Worker, client: httpx.AsyncClient) -> None:
    body = CHAT | {"stream": True, "script": {"events": 4000, "text": "x" * 10_000}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.aiter_raw()
        await anext(chunks)
        assert (await client.get("/v1/models")).status_code == 200
        running = [each for each in await worker.engine_requests() if each["end"] == "running"]
        assert len(running) == 1, "40 MB have been read for somebody who takes none of it"
        async for _ in chunks:
            pass


async def test_no_cors_unless_origins_are_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/models", headers={"Origin": "https://example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
