"""A caller of the API that hangs up: the real SGLang stops generating for it, streamed or not."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.engine.conftest import Api

pytestmark = pytest.mark.anyio

ENDLESS = {"prompt": "Count: ", "max_tokens": 3500, "ignore_eos": True, "temperature": 0}  # many seconds' worth
SECONDS = 30.0  # far longer than anything here takes


async def running_requests(client: httpx.AsyncClient) -> int:
    """How many requests the engine's scheduler works on, by its own count."""
    loads = (await client.get("/openai/v1/loads")).json()["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
async def test_request_is_aborted_within_3_seconds_of_its_caller_s_leaving(api: Api, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=api.url, timeout=SECONDS, trust_env=False) as client:
        asking = asyncio.create_task(client.post("/openai/v1/completions", json=ENDLESS | {"stream": stream}))
        async with asyncio.timeout(SECONDS):
            while not await running_requests(client) and not asking.done():
                await asyncio.sleep(0.05)
        assert not asking.done()
        began = time.monotonic()
        asking.cancel()
        async with asyncio.timeout(SECONDS):
            while await running_requests(client):
                await asyncio.sleep(0.05)
    assert time.monotonic() - began < 3.0
