"""Plain HTTP: ten thousand requests that no honest client would send, and the worker is alive and answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from scripts.worker_process import Worker, running_http_worker

pytestmark = pytest.mark.anyio

AT_ONCE = 50

METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"PATCH",
    b"TRACE",
    b"CONNECT",
    b"BREW",
    b"get",
    b"",
]
PATHS = [
    *(b"/v1/chat/completions", b"/v1/models", b"/generate", b"/ping", b"/v1/messages", b"/v1/responses/x/cancel"),
    *(
        b"/flush_cache",
        b"/v1/../flush_cache",
        b"/v1/%2e%2e/x",
        b"//",
        b"*",
        b"http://evil.example/v1/models",
        b"evil:443",
    ),
    *(
        b"/v1/models/..%2f..%2fflush_cache",
        b"/\xff\xfe",
        b"/v1/\x00",
        b"/v1/a b",
        b"/" + b"a" * 9000,
        b"/v1/models?x=%zz",
    ),
    *(b"/v1/models#x", b"/v1/models;x=1", b"/V1/MODELS", b"/v1\\models", b"?", b"/health/../v1/models"),
]
HEADERS = [
    *(b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: 99999999999999999999", b"Content-Length: 5"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked"),
    *(b"Content-Encoding: gzip", b"Content-Type: text/plain", b"Content-Type: multipart/form-data; boundary=x"),
    *(
        b"Content-Type: application/json; charset=utf-16",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"Upgrade: h2c",
    ),
    *(b"Connection: close", b"Connection: upgrade, content-type", b"Authorization: Bearer \xff", b"X-Request-Id: \x01"),
    *(
        b"X: " + b"y" * 8000,
        b"Host:",
        b"Cookie: a=b",
        b"no colon",
        b": no name",
        b" folded",
        b"X-Null: \x00",
        b"TE: trailers",
    ),
]
BODIES = [
    *(
        b"",
        b"{}",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"[" * 5000,
        b'{"a":' * 5000,
        b"\xff\xfe{}",
        b"\x1f\x8b\x08",
        b"0\r\n\r\n",
    ),
    *(
        b'{"n": 1e308}',
        b'{"stream": "maybe"}',
        b'{"stream": true}',
        b'{"messages": null, "n": "9e9"}',
        b'{"prompt": [0.5]}',
    ),
    *(
        b"1" * 5000,
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1}',
        b'{"x": NaN}',
        b"ffffffffffffffffff\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
    *(b'{"input_ids": [[-1]]}', b'{"input_ids": [99999999999999999999999]}', b'{"text": "' + b"x" * 300_000 + b'"}'),
]


def hostile_request(draw: random.Random) -> bytes:
    if draw.random() < 0.05:
        return draw.randbytes(draw.randrange(400))
    body = draw.choice(BODIES)
    headers = draw.sample(HEADERS, draw.randrange(4))
    if draw.random() < 0.7:
        headers.append(b"Content-Length: %d" % (len(body) + draw.choice([0, 0, 0, 0, -1, 7])))
    version = draw.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTCPCP/1.0", b""])
    head = b" ".join((draw.choice(METHODS[:4] * 3 + METHODS), draw.choice(PATHS[:6] * 3 + PATHS), version))
    return b"\r\n".join((head, b"Host: x", *headers, b"", body))


async def send(worker: Worker, request: bytes, draw: random.Random) -> str:
    """Send it, whole or in pieces, wait for an answer or not; what came of it."""
    host, port = worker.http_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        if draw.random() < 0.2:  # slowly, byte by byte at first
            for at in range(min(20, len(request))):
                writer.write(request[at : at + 1])
                await asyncio.sleep(0)
            request = request[20:]
        if draw.random() < 0.1:  # and then not at all
            request = request[: len(request) // 2]
        writer.write(request)
        if draw.random() < 0.2:
            return "left"
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):  # many are not complete, and would rightly be waited for
                return (await reader.read(12)).decode("latin-1") or "closed"
        return "waited for"
    except ConnectionError:
        return "reset"
    finally:
        writer.close()


async def test_ten_thousand_hostile_requests_leave_a_worker_that_answers(pytestconfig: pytest.Config) -> None:
    draw = random.Random(20)
    counts: Counter[str] = Counter()
    async with running_http_worker() as worker:
        descriptors = Path(f"/proc/{worker.process.pid}/fd")
        before = len(list(descriptors.iterdir()))

        async def attack(share: int) -> None:
            for _ in range(share):
                counts[await send(worker, hostile_request(draw), draw)] += 1

        total = 5 * pytestconfig.getoption("--inputs")
        await asyncio.gather(*(attack(total // AT_ONCE) for _ in range(AT_ONCE)))
        assert sum(counts.values()) == total
        assert {status[9:] for status in counts if status.startswith("HTTP/")} >= {"200", "400", "403", "404", "405"}
        assert not [status for status in counts if status[9:] == "500"], counts

        async with httpx.AsyncClient(base_url=worker.http_url, timeout=20, trust_env=False) as client:
            assert (await client.get("/ping")).status_code == 200
            answer = await client.post("/generate", json={"text": "x"})
            assert answer.json()["echo"] == {"text": "x"}
            assert len(worker.engine_starts()) == 1, "the engine was hit"
            for request in await worker.engine_requests():
                path = request["path"].partition("?")[0]
                assert path.startswith("/v1/") or path == "/generate", path
        async with asyncio.timeout(30):
            while len(list(descriptors.iterdir())) > before + 10:
                await asyncio.sleep(0.1)
        own = [line for line in worker.log.splitlines() if "engine: " not in line]  # the scripted one trips over bodies
        assert not [line for line in own if "Traceback" in line or "unexpected" in line]
    assert worker.process.returncode == 0


def test_hostile_requests_are_of_every_kind() -> None:
    draw = random.Random(1)
    seen = b"\n".join(hostile_request(draw) for _ in range(3000))
    assert all(part in seen for part in (*METHODS, *PATHS, *HEADERS, *BODIES))
