"""The job loop over a service that knows how much it can take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from serverless import taking
from serverless.job_loop import JobLoop
from serverless.service import Job, Service
from tests.unit.test_job_loop import MemoryPlatform, hang, never, ready
from tests.waiting import turns_of_the_loop, until

pytestmark = pytest.mark.anyio


class Room:
    """A capacity that is told."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._changed = asyncio.Event()

    def becomes(self, at_once: int) -> None:
        self.at_once = at_once
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until_above(self, jobs: int) -> None:
        while self.at_once <= jobs:
            await self._changed.wait()


def started(room: Room | None, handler: Any = hang, **more: Any) -> tuple[MemoryPlatform, JobLoop]:
    """A loop with twenty jobs waiting for it."""
    platform = MemoryPlatform()
    for number in range(20):
        platform.jobs.put_nowait({"id": f"job {number}", "input": number})
    loop = JobLoop(platform, Service(handler, ready, never, capacity=room), **({"concurrency": None} | more))
    loop.start()
    return platform, loop


async def test_no_more_is_taken_than_the_service_can_take() -> None:
    room = Room(3)
    platform, loop = started(room)
    await until(lambda: loop.in_flight == 3)
    await turns_of_the_loop()
    assert (loop.in_flight, platform.polls) == (3, 3)
    room.becomes(5)
    await until(lambda: loop.in_flight == 5)
    room.becomes(2)  # nothing is given back
    await turns_of_the_loop()
    assert loop.in_flight == 5
    await loop.stop(timeout_seconds=0)


async def test_room_is_used_before_the_number_of_slots_would_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taking, "CONCURRENCY_SECONDS", 3600.0)
    room = Room(1)
    _, loop = started(room)
    await until(lambda: loop.in_flight == 1)
    await asyncio.sleep(0.02)  # it waits for a slot by now
    room.becomes(20)
    await until(lambda: loop.in_flight == 20)
    await loop.stop(timeout_seconds=0)


async def test_users_concurrency_modifier_goes_before_the_service_s_number() -> None:
    _, loop = started(Room(15), concurrency=lambda _: 4)
    await until(lambda: loop.in_flight == 4)
    await turns_of_the_loop()
    assert loop.in_flight == 4
    await loop.stop(timeout_seconds=0)


async def test_service_that_knows_no_number_takes_one_job_at_a_time() -> None:
    most = 0

    async def one(job: Job) -> AsyncGenerator[Any, None]:
        nonlocal most
        most = max(most, loop.in_flight)
        yield job["input"]

    platform, loop = started(None, one)
    await until(lambda: len(platform.results) == 20)
    assert most == 1
    await loop.stop(timeout_seconds=0)
