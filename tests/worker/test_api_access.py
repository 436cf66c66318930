"""API mode between people: what strangers cannot do to it, and what callers learn when things go wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from scripts.worker_process import Worker, free_port, start_worker, until_api_is_ready

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SECONDS = 30.0  # far longer than anything here takes
EVENTS, EVENT_BYTES = 400, 250_000


@dataclass
class Api:
    worker: Worker
    port: int
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def last_request(self) -> dict[str, Any]:
        return (await self.worker.engine_requests())[-1]

    def memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.worker.process.pid}/statm").read_text().split()[1])
        return pages * 4096


@asynccontextmanager
async def running_api(*flags: str, **environment: str) -> AsyncIterator[Api]:
    port = free_port()
    worker = await start_worker(None, environment, arguments=("--rp_serve_api", "--rp_api_port", str(port), *flags))
    url, key = f"http://127.0.0.1:{port}", environment.get("LOCAL_API_KEY", "none")
    try:
        await until_api_is_ready(url, worker, key=key)
        async with (
            httpx.AsyncClient(base_url=url, timeout=SECONDS, trust_env=False) as http,
            openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key=key, max_retries=0) as client,
        ):
            yield Api(worker, port, http, client)
    finally:
        await worker.stop()


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[Api]:
    async with running_api() as api:
        yield api


async def test_other_sites_pages_can_do_nothing(api: Api) -> None:
    """What a browser sends for any page without asking: a simple request, with its Origin."""
    chat = json.dumps({"messages": HELLO})
    before = len(await api.worker.engine_requests())
    for path, body in (("/run", f'{{"input": {chat}}}'), ("/openai/v1/chat/completions", chat), ("/purge-queue", "")):
        page = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        assert (await api.http.post(path, content=body, headers=page)).status_code == 403
        rebound = {"Host": f"evil.example:{api.port}", "Origin": f"http://evil.example:{api.port}"}
        rebound["Content-Type"] = "application/json"
        assert (await api.http.post(path, content=body, headers=rebound)).status_code == 403
    answer = await api.http.post("/run", content=f'{{"input": {chat}}}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert len(await api.worker.engine_requests()) == before
    assert (await api.http.get("/")).status_code == 200


async def test_post_without_a_body_reaches_the_engine_as_a_post(api: Api) -> None:
    await api.openai.post("/responses/resp_1/cancel", cast_to=object)
    asked = await api.last_request()
    assert (asked["method"], asked["path"]) == ("POST", "/v1/responses/resp_1/cancel")


async def test_query_reaches_the_engine(api: Api) -> None:
    await api.http.get("/openai/v1/responses/resp_1", params={"limit": 5})
    asked = await api.last_request()
    assert (asked["method"], asked["path"]) == ("GET", "/v1/responses/resp_1?limit=5")


async def test_openai_s_own_code_reaches_its_client(api: Api) -> None:
    error = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    script = {"script": {"status": 404, "body": json.dumps({"error": error})}}
    with pytest.raises(openai.NotFoundError) as raised:
        await api.openai.chat.completions.create(model="x", messages=HELLO, extra_body=script)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_anthropic_s_client_reads_a_failure_in_its_own_form(api: Api) -> None:
    script = {"script": {"status": 400, "body": '{"error": {"message": "because"}}'}}
    client = anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{api.port}/openai", api_key="x", max_retries=0)
    async with client:
        with pytest.raises(anthropic.BadRequestError) as raised:
            await client.messages.create(model="x", max_tokens=1, messages=HELLO, extra_body=script)
    body: Any = raised.value.body
    assert (body["type"], body["error"]) == ("error", {"type": "invalid_request_error", "message": "because"})


async def test_unstreamed_request_is_aborted_when_its_caller_hangs_up(api: Api) -> None:
    asking = asyncio.create_task(
        api.http.post("/openai/v1/chat/completions", json={"messages": HELLO, "script": {"pause": 60}})
    )
    async with asyncio.timeout(SECONDS):
        while "pause" not in ((await api.last_request())["body"] or {}).get("script", {}):
            await asyncio.sleep(0.02)
    began = time.monotonic()
    asking.cancel()
    async with asyncio.timeout(SECONDS):
        while (await api.last_request())["end"] != "aborted":
            await asyncio.sleep(0.02)
    assert time.monotonic() - began < 3.0


async def test_unread_stream_holds_the_engine_back_and_loses_nothing(api: Api) -> None:
    before = api.memory_bytes()
    script = {"events": EVENTS, "text": "x" * EVENT_BYTES}
    body = json.dumps({"messages": HELLO, "stream": True, "script": script}).encode()
    head = f"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=2**16)
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
    async with asyncio.timeout(SECONDS):
        while "events" not in ((await api.last_request())["body"] or {}).get("script", {}):
            await asyncio.sleep(0.02)
    await asyncio.sleep(3)  # the engine could have sent all 100 MB in this time
    assert (await api.last_request())["end"] == "running"
    assert api.memory_bytes() - before < 60e6
    taken, last = 0, b""
    async with asyncio.timeout(SECONDS):
        while chunk := await reader.read(2**20):
            taken += len(chunk)
            last = (last + chunk)[-100:]
    writer.close()
    assert taken > EVENTS * EVENT_BYTES
    assert b"[DONE]" in last


async def test_endless_headers_are_not_taken_up(api: Api) -> None:
    before = api.memory_bytes()
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Endless: ")
    with suppress(ConnectionError):
        for _ in range(500):
            writer.write(b"x" * 200_000)
            await writer.drain()
        pytest.fail("100 MB of headers were taken")
    writer.close()
    assert api.memory_bytes() - before < 30e6
    assert (await api.http.get("/health")).status_code == 200


async def test_key_is_needed_for_all_but_the_page_and_taken_in_any_case() -> None:
    async with running_api(LOCAL_API_KEY="local-secret") as api:
        for path in ("/health", "/docs", "/openapi.json", "/openai/v1/models"):
            for shown in (b"", b"Bearer wrong", "Bearer ключ".encode(), b"Bearer \xe9"):
                assert (await api.http.get(path, headers={b"Authorization": shown})).status_code == 401
            key = {b"Authorization": b"bearer local-secret"}
            assert (await api.http.get(path, headers=key)).status_code == 200
        assert (await api.http.get("/")).status_code == 200


async def test_callers_that_wait_at_a_stop_are_told_at_once_and_running_jobs_go_on() -> None:
    async with running_api("--rp_api_concurrency", "1") as api:
        endless = {"messages": HELLO, "stream": True, "script": {"events": 100_000, "pause": 0.05}}
        async with api.http.stream("POST", "/openai/v1/chat/completions", json=endless) as running:
            events = running.aiter_lines()
            await anext(events)
            openai_call = asyncio.create_task(api.http.post("/openai/v1/chat/completions", json={"messages": HELLO}))
            runsync = asyncio.create_task(api.http.post("/runsync", json={"input": {"messages": HELLO}}))
            async with asyncio.timeout(SECONDS):
                while (await api.http.get("/health")).json()["jobs"]["inQueue"] < 2:
                    await asyncio.sleep(0.02)
            api.worker.process.send_signal(signal.SIGTERM)
            answer, report = await openai_call, (await runsync).json()
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "the worker is stopping" in answer.json()["error"]["message"]
            assert report["status"] == "FAILED"
            assert "the worker is stopping" in report["error"]
            late = await api.http.post("/run", json={"input": {"messages": HELLO}})
            assert (late.status_code, late.headers["retry-after"]) == (503, "5")
            for _ in range(20):
                assert "the worker is stopping" not in await anext(events)
        assert await api.worker.exit_code() == 0
        assert "Traceback" not in api.worker.log
