"""The heartbeat: it outlives what kills it, and ends with its worker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from scripts.worker_process import Platform, Worker, command_line, running_platform, running_worker
from sglang_engine.posix import is_alive

pytestmark = pytest.mark.anyio


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(child) for child in children.read().split()]


def keeper_of(worker: Worker) -> int | None:
    """The heartbeat's keeper: the forked copy of the worker that has forked a copy itself."""
    for child in worker.children():
        if command_line(child) == command_line(worker.process.pid) and children_of(child):
            return child
    return None


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
