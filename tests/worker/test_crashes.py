"""The engine killed under fifty jobs, again and again: each of them answered or failed with the reason, once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from local_runpod import Job, JobState
from scripts.worker_process import Platform, Worker, running_worker
from tests.answers import error_of, events_of

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
JOBS = 50
REASON = "the engine was killed by SIGKILL (usual cause: killed from outside, usually out of memory"

# What the engine does with the jobs while it lives, and how long after the last of them has got that far it is killed.
MOMENTS: dict[str, tuple[dict[str, Any], float]] = {
    "before the first byte": ({"pause": 60}, 0.0),
    "in mid-stream": ({"events": 10_000, "pause": 0.01}, 0.0),
    "between two outputs": ({"events": 10_000, "pause": 0.4}, 0.15),
}


@pytest.fixture(scope="module")
async def worker(platform: Platform) -> AsyncIterator[Worker]:
    environment = {"ENGINE_MAX_RESTARTS": "1000", "ENGINE_RESTART_WINDOW_SECONDS": "0.1"}
    async with running_worker(platform, environment) as worker:
        yield worker


@pytest.mark.parametrize("moment", MOMENTS)
async def test_killed_engine_loses_no_job(
    platform: Platform, worker: Worker, moment: str, pytestconfig: pytest.Config
) -> None:
    before_the_end, pause = MOMENTS[moment]
    for _ in range(pytestconfig.getoption("--kills")):
        life = len(worker.engine_starts())
        streamed = {"first": before_the_end, "life": life, "events": 5}
        unstreamed = {"first": {"pause": 60}, "life": life}  # these have sent nothing, whatever the moment
        jobs = [
            platform.queue.submit(
                {"messages": HELLO, "stream": bool(number % 5), "script": streamed if number % 5 else unstreamed}
            )
            for number in range(JOBS)
        ]
        await until_under_way(worker, jobs, streaming="events" in before_the_end)
        await asyncio.sleep(pause)
        pid = worker.engine_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for job in jobs:
            await job.finished(30)
            check(job)
        assert [job.answers for job in jobs] == [1] * JOBS
        completed = [job.state is JobState.COMPLETED for job in jobs].count(True)
        assert completed == (JOBS // 5 if "events" in before_the_end else JOBS)
        assert len(worker.engine_starts()) == life + 1


async def until_under_way(worker: Worker, jobs: list[Job], *, streaming: bool) -> None:
    async with asyncio.timeout(30):
        while len([r for r in await worker.engine_requests() if r["path"] == "/v1/chat/completions"]) < JOBS:
            await asyncio.sleep(0.02)
    if streaming:
        for job in jobs:
            if job.input["stream"]:
                await job.streamed(1, 30)


def check(job: Job) -> None:
    if job.state is JobState.COMPLETED:
        if job.input["stream"]:
            *events, done = events_of(job.stream)
            assert done == "[DONE]"
            assert [event["index"] for event in events] == list(range(5)), "nothing twice, nothing missing"
        return
    error = error_of(job)
    assert error["code"] == 502
    assert REASON in error["message"]
    *events, last = events_of(job.stream)
    assert last == {"error": error}
    assert [event["index"] for event in events] == list(range(len(events)))
