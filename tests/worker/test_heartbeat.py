"""The heartbeat: it outlives what kills it, and ends with its worker."""

from __future__ import annotations

import asyncio
import os
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
