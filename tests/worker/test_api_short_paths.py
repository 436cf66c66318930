"""API mode at the paths that people type, `/v1/…`, and its health checks."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from scripts.worker_process import Worker, free_port, start_worker
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = "key-of-the-clients"


@asynccontextmanager
async def api_mode(environment: dict[str, str], **more: Any) -> AsyncIterator[tuple[Worker, httpx.AsyncClient]]:
    port = free_port()
    worker = await start_worker(None, environment, arguments=("--rp_serve_api", f"--rp_api_port={port}"), **more)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            async with asyncio.timeout(30):
                while True:
                    with suppress(httpx.ConnectError):
                        await client.get("/ping")
                        break
                    await asyncio.sleep(0.02)
            yield worker, client
    finally:
        await worker.stop()


async def until_ping_says(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(30):
        while (await client.get("/ping")).status_code != status:
            await asyncio.sleep(0.02)


async def statuses(client: httpx.AsyncClient) -> list[int]:
    return [(await client.get(path)).status_code for path in ("/ping", "/health/ready", "/health/live")]


async def test_health_checks_tell_the_truth_and_v1_answers(tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    async with api_mode({"LOCAL_API_KEY": KEY}, engine={"ready_when": str(warm)}) as (worker, client):
        assert await statuses(client) == [204, 503, 200]
        warm.touch()
        await until_ping_says(client, 200)
        assert await statuses(client) == [200, 200, 200]

        assert (await client.get("/v1/models")).status_code == 401
        url = str(client.base_url)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as clients:
            stream = await clients.chat.completions.create(model="m", messages=HELLO, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["word "] * 3
        async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as other:
            with pytest.raises(anthropic.BadRequestError) as refused:
                await other.messages.create(
                    model="m", max_tokens=5, messages=HELLO, extra_body={"script": {"status": 400, "body": "no"}}
                )
        assert refused.value.status_code == 400
        last = (await worker.engine_requests())[-1]
        assert last["path"].startswith("/v1/messages")
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = await client.get("/v1/responses/resp_1", params={"limit": 5}, headers=headers)
        assert answer.json()["path"] == "/v1/responses/resp_1?limit=5"
        assert (await client.get("/health", headers=headers)).json()["workers"]["ready"] == 1, "RunPod's own stays"
        assert (await client.get("/v2/local/v1/models", headers=headers)).status_code == 404

        warm.unlink()
        await until(worker.engine_pid)
        os.kill(worker.engine_pid() or 0, signal.SIGKILL)
        await until_ping_says(client, 204)
        warm.touch()
        await until_ping_says(client, 200)
        body = {"messages": HELLO, "script": {"pause": 2}}
        slow = asyncio.create_task(client.post("/v1/chat/completions", json=body, headers=headers))
        await asyncio.sleep(0.5)
        worker.process.send_signal(signal.SIGTERM)
        await until_ping_says(client, 503)
        assert await statuses(client) == [503, 503, 200]
        assert (await slow).status_code == 200
        assert await worker.exit_code() == 0
