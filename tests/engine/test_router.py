"""SGLang's model gateway in front of two real workers: docs/kubernetes.md."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.environment import engine_environment
from scripts.worker_process import Worker, free_port, running_http_worker
from tests.waiting import START_SECONDS, until

pytestmark = pytest.mark.anyio

ROUTE = "/v1/chat/completions"
# The tiny GLM has 8192 tokens of cache; a long beginning tells two conversations apart.
STORY = "The quick brown fox jumps over the lazy dog. " * 20


@dataclass(frozen=True)
class Fleet:
    workers: list[Worker]
    client: httpx.AsyncClient


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "glm-4.7-flash",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
        "temperature": 0,
        **more,
    }


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Two workers, started one after the other (each start takes both cores), and the router."""
    environment = engine_environment({}) | {"ENABLE_CACHE_REPORT": "true"}  # how much of a prompt was cached
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(running_http_worker(environment, start_seconds=START_SECONDS))
            for _ in range(2)
        ]
        url = await stack.enter_async_context(
            running_router([worker.http_url for worker in workers], tmp_path_factory.mktemp("router"))
        )
        client = httpx.AsyncClient(base_url=url, timeout=60, trust_env=False)
        yield Fleet(workers, await stack.enter_async_context(client))


@asynccontextmanager
async def running_router(urls: list[str], folder: Path) -> AsyncIterator[str]:
    """The router over these workers, once it has found them; gives its URL."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
        *("--policy", "cache_aware", "--health-check-endpoint", "/health/ready", "--health-check-interval-secs", "1"),
        *("--prometheus-port", str(free_port()), "--worker-urls", *urls),
    ]
    with (folder / "router.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(START_SECONDS):
            while await healthy_workers(client) < len(urls):
                assert process.returncode is None, (folder / "router.log").read_text()[-2000:]
                await asyncio.sleep(0.2)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def healthy_workers(client: httpx.AsyncClient) -> int:
    with suppress(httpx.TransportError):
        answer = await client.get("/readiness")
        if answer.is_success:
            return int(answer.json()["healthy_workers"])
    return 0


def requests_at(fleet: Fleet) -> list[int]:
    """How many chats each worker has answered, by its log."""
    return [worker.log.count(ROUTE) for worker in fleet.workers]


async def test_both_workers_serve(fleet: Fleet) -> None:
    answers = await asyncio.gather(
        *(fleet.client.post(ROUTE, json=chat(f"{n} {'abcdefgh'[n] * 200}", max_tokens=64)) for n in range(8))
    )
    assert [answer.status_code for answer in answers] == [200] * 8
    await until(lambda: sum(requests_at(fleet)) == 8)
    assert all(requests_at(fleet)), requests_at(fleet)


async def test_conversation_stays_where_its_beginning_is_cached(fleet: Fleet) -> None:
    at_first = sum(requests_at(fleet))
    first = await fleet.client.post(ROUTE, json=chat(f"{STORY} Go on."))
    assert first.status_code == 200
    await until(lambda: sum(requests_at(fleet)) == at_first + 1)
    before = requests_at(fleet)
    for turn in range(4):
        answer = (await fleet.client.post(ROUTE, json=chat(f"{STORY} Go on. {turn}"))).json()
        cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        assert cached > answer["usage"]["prompt_tokens"] / 2
    await until(lambda: sum(requests_at(fleet)) == at_first + 5)
    went = [after - earlier for after, earlier in zip(requests_at(fleet), before, strict=True)]
    assert sorted(went) == [0, 4]


async def test_worker_killed_under_load_loses_no_request_that_had_sent_nothing(fleet: Fleet) -> None:
    async def unstreamed(number: int) -> int:
        answer = await fleet.client.post(ROUTE, json=chat(f"{number} {STORY}", max_tokens=200, ignore_eos=True))
        return answer.status_code

    asked = [asyncio.create_task(unstreamed(number)) for number in range(12)]
    await asyncio.sleep(1)
    victim = fleet.workers[1].process
    assert victim.returncode is None
    assert not any(task.done() for task in asked)
    victim.kill()
    assert await asyncio.gather(*asked) == [200] * 12
