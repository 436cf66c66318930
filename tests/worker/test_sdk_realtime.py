"""The realtime API of a program of one's own, where its platform asks for it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx
import pytest

from common.web_server import serving
from local_runpod import JobQueue, worker_environment
from scripts.worker_process import free_port, running_platform, until_api_is_ready
from tests.waiting import until
from tests.worker.sdk_places import ANSWER_SECONDS, start_program
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio


async def started(stack: AsyncExitStack, platform: str) -> tuple[JobQueue, dict[str, str]]:
    """A platform's queue, and the variables with which it starts a worker."""
    if platform == "runpod":
        runpod = await stack.enter_async_context(running_platform())
        return runpod.queue, worker_environment(runpod.base_url, endpoint_id="glm", worker_id="pod-7")
    waverless = Waverless()
    port = await stack.enter_async_context(serving(waverless.app(), "127.0.0.1", 0))
    waverless.base_url = f"http://127.0.0.1:{port}"
    return waverless.queue, waverless.environment()


@pytest.mark.parametrize("platform", ["runpod", "waverless"])
async def test_realtime_port_serves_the_sdk_s_realtime_api_and_the_heart_beats_for_the_platform(platform: str) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        queue, variables = await started(stack, platform)
        names = platform.upper()
        environment = variables | {
            f"{names}_REALTIME_PORT": str(port),
            f"{names}_REALTIME_CONCURRENCY": "2",
            f"{names}_PING_INTERVAL": "1000",
        }
        worker = await start_program("coroutine", environment)
        url = f"http://127.0.0.1:{port}"
        await until_api_is_ready(url, worker, ANSWER_SECONDS)
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:

            async def ask(job_id: str, **job_input: object) -> httpx.Response:
                headers = {"Host": "pod-8000.proxy.runpod.net"}
                return await client.post("/glm/realtime", json={"id": job_id, "input": job_input}, headers=headers)

            assert (await ask("a", **{"return": {"n": 1}})).json() == {"output": {"n": 1}}
            assert "error" in (await ask("b", **{"raise": "exit", "code": 3})).json()
            together = await asyncio.gather(*(ask(str(n), meet=2) for n in range(4)))
            assert [answer.json() for answer in together] == [{"output": 2}] * 4
            assert (await client.post("/glm/realtime", json={"input": 1})).status_code == 400
        await until(lambda: len(queue.pings.get("pod-7", ())) >= 3)
        assert not queue.jobs, "nothing is taken from the platform's queue"
        assert await worker.stop() == 0
