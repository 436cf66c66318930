"""The heartbeat: it outlives what kills it, and ends with its worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable

import pytest

from scripts.worker_process import Platform, children_of, running_platform, running_worker
from sglang_engine.posix import is_alive
from tests.worker.heartbeat import keeper_of

pytestmark = pytest.mark.anyio


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


async def beats_on(platform: Platform) -> None:
    """Return once two more pings have come."""
    [pings] = platform.queue.pings.values()
    seen = len(pings)
    await until(lambda: len(pings) >= seen + 2)


START = re.compile(r"first heartbeat of the ready worker; its start took (worker \d+\.\d s, imports \d+\.\d s.*)")


async def test_first_heartbeat_of_the_ready_worker_logs_where_its_start_went_once() -> None:
    settings = {"RUNPOD_PING_INTERVAL": "1000", "LOG_FORMAT": "json"}
    async with running_platform() as platform, running_worker(platform, settings) as worker:
        await until(lambda: START.search(worker.log))
        await until(lambda: keeper_of(worker))
        keeper = keeper_of(worker)
        assert keeper is not None
        [heartbeat] = children_of(keeper)
        os.kill(heartbeat, signal.SIGKILL)  # the next one knows that it has been told
        await until(lambda: "it is started again" in worker.log)
        await until(lambda: keeper_of(worker))
        await beats_on(platform)
        lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
        [told] = [line for line in lines if START.match(line["message"])]
        [ready] = [line["message"] for line in lines if line["message"].startswith("the start went to: ")]
        assert START.match(told["message"])[1] == ready.removeprefix("the start went to: ")  # type: ignore[index]
        seconds = told["start_seconds"]
        assert {"worker", "imports", "download", "weights", "CUDA graphs", "warm-up"} == set(seconds)
        assert seconds["worker"] > 0


@pytest.mark.parametrize("victim", ["heartbeat", "keeper"])
async def test_heartbeat_that_is_killed_beats_on(victim: str) -> None:
    async with (
        running_platform() as platform,
        running_worker(platform, {"RUNPOD_PING_INTERVAL": "1000"}) as worker,
    ):
        await until(lambda: keeper_of(worker))
        keeper = keeper_of(worker)
        assert keeper is not None
        [heartbeat] = children_of(keeper)
        os.kill(heartbeat if victim == "heartbeat" else keeper, signal.SIGKILL)
        await until(lambda: not is_alive(heartbeat))
        await until(lambda: keeper_of(worker))
        await beats_on(platform)
        await until(lambda: "it is started again" in worker.log)
        after = keeper_of(worker)
        assert after is not None
        processes = [after, *children_of(after)]
        worker.process.kill()
        await until(lambda: not any(map(is_alive, processes)))
