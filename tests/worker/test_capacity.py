"""How many jobs a worker takes, by what its engine says of its load."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from common.web_server import serving
from local_runpod import JobState
from scripts.worker_process import (
    Platform,
    Worker,
    free_port,
    running_platform,
    running_worker,
    start_worker,
    until_api_is_ready,
)
from tests.waiting import until
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]


def submit(platform: Platform, count: int, **script: Any) -> list[Any]:
    return [platform.queue.submit({"messages": HELLO, "script": script}) for _ in range(count)]


async def burst(platform: Platform, worker: Worker, count: int, **script: Any) -> dict[str, Any]:
    """Have this many jobs answered; returns what the engine saw."""
    for job in submit(platform, count, **script):
        assert (await job.finished(30)).state is JobState.COMPLETED
    return await worker.ask_engine()


async def test_worker_takes_what_runs_and_a_small_reserve(platform: Platform) -> None:
    async with running_worker(platform, {"MAX_RUNNING_REQUESTS": "8"}) as worker:
        seen = await burst(platform, worker, 32, pause=0.8)
        assert seen["most_at_once"] in range(10, 12)
        assert seen["most_waiting"] in range(1, 4)
        await until(lambda: "taking up to 10 jobs at once to begin with, 2 of them in reserve" in worker.log)
        await until(lambda: "the engine is full: 8 requests run" in worker.log)
        await until(lambda: worker.log.count("the engine is full") == 1)


async def test_burst_of_tiny_jobs_is_taken_at_once(platform: Platform) -> None:
    async with running_worker(platform, {"MAX_RUNNING_REQUESTS": "64"}) as worker:
        jobs = submit(platform, 64, pause=3)
        await until(lambda: all(job.taken_at for job in jobs))
        assert max(job.taken_at for job in jobs) - min(job.taken_at for job in jobs) < 1.5, "before the first was done"
        for job in jobs:
            await job.finished(30)
        assert (await worker.ask_engine())["most_waiting"] == 0


async def test_kv_cache_decides_where_it_is_what_binds(platform: Platform) -> None:
    async with running_worker(platform, {"MAX_TOTAL_TOKENS": "4000"}) as worker:
        seen = await burst(platform, worker, 24, pause=0.4, tokens=900)
        assert seen["most_at_once"] in range(6, 9), "four run"
        assert seen["most_waiting"] <= 4


async def test_engine_is_asked_about_twice_a_second_and_only_while_it_has_jobs(platform: Platform) -> None:
    async with running_worker(platform, {"MAX_RUNNING_REQUESTS": "2"}) as worker:
        [job] = submit(platform, 1, pause=3)
        await job.finished(30)
        await asyncio.sleep(1)
        asked = (await worker.ask_engine())["loads_asked"]
        assert asked in range(5, 13)
        await asyncio.sleep(1.5)
        assert (await worker.ask_engine())["loads_asked"] == asked


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        (404, "it answers 404"),
        ({"max_running_requests": 0}, "its `max_running_requests` is not a number of at least 1"),
    ],
)
async def test_worker_falls_back_to_a_guess_where_the_engine_says_nothing_usable(
    platform: Platform, loads: Any, reason: str
) -> None:
    async with running_worker(platform, engine={"loads": loads}) as worker:
        seen = await burst(platform, worker, 310, pause=2)
        assert seen["most_at_once"] == 300
        [warning] = [line for line in worker.log.splitlines() if "WARN" in line and "/v1/loads" in line]
        assert f"GET /v1/loads: {reason}): taking up to 300 jobs at once" in warning


async def test_engine_that_lies_is_found_out(platform: Platform) -> None:
    lie = {"num_running_reqs": 0, "num_waiting_reqs": 50}
    async with running_worker(platform, engine={"loads": lie}) as worker:
        jobs = submit(platform, 150, pause=0.3)
        for job in jobs:
            assert (await job.finished(60)).state is JobState.COMPLETED
        await until(
            lambda: (
                "it says that nothing runs, and yet requests are answered): taking up to 300 jobs at once" in worker.log
            )
        )
        assert (await worker.ask_engine())["most_at_once"] > 20


@pytest.mark.parametrize(("given", "most"), [("auto:3", 3), ("20", 20)])
async def test_ceiling_and_fixed_number_are_kept(given: str, most: int) -> None:
    async with (
        running_platform() as platform,
        running_worker(platform, {"MAX_CONCURRENCY": given, "MAX_RUNNING_REQUESTS": "8"}) as worker,
    ):
        assert (await burst(platform, worker, 40, pause=0.2))["most_at_once"] == most


async def test_restarted_engine_is_asked_anew(platform: Platform) -> None:
    engine = [{"loads": {"max_running_requests": 2}}, {"loads": {"max_running_requests": 5}}]
    async with running_worker(platform, engine=engine) as worker:
        crash = {"pause": 0.2, "first": {"then": "crash"}}
        assert (await platform.answer({"messages": HELLO, "script": crash})).state is JobState.COMPLETED
        assert len(worker.engine_starts()) == 2
        await until(lambda: "the engine is ready" in worker.log)
        seen = await burst(platform, worker, 20, pause=0.3)
        assert seen["most_at_once"] in range(7, 9)


async def test_worker_on_waverless_takes_as_much_and_leaves_the_rest() -> None:
    platform = Waverless()
    async with serving(platform.app(), "127.0.0.1", 0) as port:
        platform.base_url = f"http://127.0.0.1:{port}"
        jobs = [platform.queue.submit({"messages": HELLO, "script": {"pause": 0.5}}) for _ in range(24)]
        environment = {"MAX_RUNNING_REQUESTS": "4", "WAVERLESS_HEALTH_PORT": str(free_port())}
        worker = await start_worker(None, platform.environment() | environment)
        for job in jobs:
            assert (await job.finished(60)).state is JobState.COMPLETED
        seen = await worker.ask_engine()
        assert seen["most_at_once"] in range(6, 8), "four run, two are the reserve"
        assert seen["most_waiting"] <= 3
        assert await worker.stop() == 0


async def test_api_mode_takes_as_much_and_keeps_the_rest_in_its_queue() -> None:
    port = free_port()
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(None, {"MAX_RUNNING_REQUESTS": "4"}, arguments=flags)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=f"{url}/v2/any", timeout=60, trust_env=False) as client:
        await until_api_is_ready(url, worker)
        body = {"input": {"messages": HELLO, "script": {"pause": 0.5}}}
        answers = await asyncio.gather(*(client.post("/runsync", json=body) for _ in range(24)))
        assert {answer.json()["status"] for answer in answers} == {"COMPLETED"}
        seen = await worker.ask_engine()
        assert seen["most_at_once"] in range(6, 8), "four run, two are the reserve"
        assert seen["most_waiting"] <= 3
    assert await worker.stop() == 0
