"""The real SGLang under a full queue: what waits inside it is the worker's reserve, and the rest stays in the queue."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import httpx
import pytest

from embedded.environment import engine_environment
from local_runpod import Job, JobState
from scripts.worker_process import Worker, running_platform, running_worker
from sglang_engine.loads import PATH
from tests.waiting import START_SECONDS, until

pytestmark = pytest.mark.anyio

JOBS, TOKENS = 60, 100
MOST_WAITING = 3  # the reserve, and a request that is on its way into the batch


async def loads_of(worker: Worker, jobs: list[Job]) -> list[dict[str, Any]]:
    """What SGLang says of its load, four times a second while jobs are left in the queue."""
    seen = []
    async with httpx.AsyncClient(base_url=worker.engine_url, timeout=30, trust_env=False) as client:
        while any(job.state is JobState.IN_QUEUE for job in jobs):
            seen += (await client.get(PATH)).json()["loads"]
            await asyncio.sleep(0.25)
    return seen


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"MAX_RUNNING_REQUESTS": "8"}, id="the slots bind"),
        pytest.param({"MAX_RUNNING_REQUESTS": "8", "MAX_TOTAL_TOKENS": "1200"}, id="the KV cache binds"),
    ],
)
async def test_no_more_than_the_reserve_waits_inside_sglang(limits: dict[str, str]) -> None:
    async with (
        running_platform() as platform,
        running_worker(platform, engine_environment({}) | limits, start_seconds=START_SECONDS) as worker,
    ):
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS, "ignore_eos": True}
        jobs = [platform.queue.submit(body | {"stream": True}) for _ in range(JOBS)]
        await until(lambda: any(job.state is JobState.COMPLETED for job in jobs), 120)
        seen = await loads_of(worker, jobs)
        for job in jobs:
            assert (await job.finished(120)).state is JobState.COMPLETED
        assert max(load["num_running_reqs"] for load in seen) >= 4
        waiting = [load["num_waiting_reqs"] for load in seen]
        # Not at every moment: SGLang takes requests back out of its batch when they have filled the cache.
        assert statistics.median(waiting) <= MOST_WAITING, waiting
        assert "GET /v1/loads" in worker.log
        assert "does not say what it can run" not in worker.log
