"""What the environment asks of a program of one's own: realtime API, heartbeat, health port, webhooks."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from common.web_server import serving
from local_runpod import worker_environment
from scripts.worker_process import ANSWER_SECONDS, free_port, running_platform, until_api_is_ready
from tests.waiting import until
from tests.worker.sdk_places import start_program
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio


async def test_realtime_port_serves_the_sdk_s_realtime_api_and_the_heart_beats_for_the_platform() -> None:
    port = free_port()
    async with running_platform() as platform:
        environment = {
            **worker_environment(platform.base_url, endpoint_id="mine"),
            "RUNPOD_REALTIME_PORT": str(port),
            "RUNPOD_REALTIME_CONCURRENCY": "2",
            "RUNPOD_PING_INTERVAL": "500",
        }
        worker = await start_program("coroutine", environment)
        url = f"http://127.0.0.1:{port}"
        await until_api_is_ready(url, worker)
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:

            async def ask(job_id: str, **job_input: object) -> httpx.Response:
                headers = {"Host": "pod-8000.proxy.runpod.net"}
                return await client.post("/mine/realtime", json={"id": job_id, "input": job_input}, headers=headers)

            assert (await ask("a", **{"return": {"n": 1}})).json() == {"output": {"n": 1}}
            assert "error" in (await ask("b", **{"raise": "exit", "code": 3})).json()
            async with asyncio.timeout(2 * 2):  # one after the other they would take twice as long
                both = await asyncio.gather(*(ask(str(n), wait_seconds=2, **{"return": n}) for n in range(2)))
            assert [answer.json() for answer in both] == [{"output": 0}, {"output": 1}]
            assert (await client.post("/mine/realtime", json={"input": 1})).status_code == 400
        await until(lambda: len(platform.queue.pings.get("local-worker", ())) >= 3)
        assert not platform.queue.jobs, "nothing is taken from the platform's queue"
        assert await worker.stop() == 0
        await until(lambda: "a ping interval of '500' ms is of no use: pinging every 1000 ms" in worker.log)


async def test_port_flag_moves_the_health_port_on_waverless() -> None:
    waverless, port, elsewhere = Waverless(), free_port(), free_port()
    async with serving(waverless.app(), "127.0.0.1", 0) as platform_port:
        waverless.base_url = f"http://127.0.0.1:{platform_port}"
        environment = waverless.environment() | {"WAVERLESS_HEALTH_PORT": str(elsewhere)}
        worker = await start_program("function", environment, "--waverless_api_port", str(port), "--rp_debugger")
        job = await waverless.queue.submit({"return": {"n": 1}}).finished(ANSWER_SECONDS)
        assert job.output == {"n": 1}
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).json()["status"] == "ok"
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{elsewhere}/health")
        assert await worker.stop() == 0


@pytest.mark.parametrize(
    ("hosts", "webhook", "status"),
    [
        ("", "http://127.0.0.1:9/hook", 200),
        ("hooks.example", "http://127.0.0.1:9/hook", 400),
        ("hooks.example,127.0.0.1", "http://127.0.0.1:9/hook", 200),
        ("127.0.0.1", "http://1.1.1.1/hook", 400),
    ],
)
async def test_webhook_hosts_are_the_only_ones_that_are_called(hosts: str, webhook: str, status: int) -> None:
    port = free_port()
    worker = await start_program("function", {"WEBHOOK_HOSTS": hosts}, "--rp_serve_api", "--rp_api_port", str(port))
    url = f"http://127.0.0.1:{port}"
    await until_api_is_ready(url, worker)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.post("/run", json={"input": {}, "webhook": webhook})
        assert (answer.status_code, "WEBHOOK_HOSTS" in answer.text) == (status, status == 400)
    worker.process.kill()
    await worker.process.wait()
