"""A job whose answer is complete leaves its slot before its posts; but not without bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.response import LastEvents, events
from serverless.job_loop import JobLoop
from serverless.service import Job, Service
from tests.chunks import NO_CEILING, Source
from tests.unit.test_job_loop import MemoryPlatform, idle, never, ready
from tests.waiting import turns_of_the_loop, until

pytestmark = pytest.mark.anyio

SLOTS = 2


class SlowPlatform(MemoryPlatform):
    """Takes an output only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.sending = 0

    async def post_output(self, job: Job, output: Any) -> None:
        self.sending += 1
        await self.go_on.wait()
        await super().post_output(job, output)


async def echo(job: Job) -> AsyncGenerator[Any, None]:
    yield job["input"]


async def started(platform: SlowPlatform, *inputs: Any) -> JobLoop:
    service = Service(
        echo,
        ready,
        never,
        is_whole_answer=lambda output: isinstance(output, dict),
        ends_answer=lambda output: isinstance(output, LastEvents),
    )
    loop = JobLoop(platform, service, concurrency=lambda _: SLOTS)
    for number, each in enumerate(inputs):
        platform.jobs.put_nowait({"id": str(number), "input": each})
    loop.start()
    return loop


@pytest.mark.parametrize("answer", [{"choices": []}, LastEvents("data: [DONE]\n\n")], ids=["whole", "stream's end"])
async def test_answered_job_leaves_its_slot_before_its_posts_but_no_more_do_than_there_are_slots(answer: Any) -> None:
    platform = SlowPlatform()
    loop = await started(platform, *[answer] * 20)
    await until(lambda: platform.sending == 2 * SLOTS)
    await turns_of_the_loop()
    assert (platform.sending, loop.in_flight) == (2 * SLOTS, 2 * SLOTS)
    platform.go_on.set()
    await until(lambda: len(platform.results) == 20)
    assert platform.outputs == [answer] * 20
    await idle(loop)
    await loop.stop(timeout_seconds=0)


async def test_part_of_a_stream_keeps_its_slot() -> None:
    platform = SlowPlatform()
    loop = await started(platform, *["data: 1\n\n"] * 20)
    await until(lambda: platform.sending == SLOTS)
    await turns_of_the_loop()
    assert loop.in_flight == SLOTS
    platform.go_on.set()
    await until(lambda: len(platform.results) == 20)
    await loop.stop(timeout_seconds=0)


async def test_last_output_of_a_complete_stream_says_so() -> None:
    outputs = [output async for output in events(Source(b"data: 1\n\n", b"data: [DONE]\n\n"), NO_CEILING)]
    assert [(type(output), output) for output in outputs] == [(str, "data: 1\n\n"), (LastEvents, "data: [DONE]\n\n")]
