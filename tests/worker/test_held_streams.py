"""Outputs that are held back for seconds, by STREAM_FLUSH_MS and many streams: a stream's end is not."""

from __future__ import annotations

import asyncio

import pytest

from local_runpod import JobState
from scripts.worker_process import running_platform, running_worker
from tests.answers import events_of

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
SETTINGS = {"STREAM_FLUSH_MS": "5000", "MAX_CONCURRENCY": "100"}
HOLD_SECONDS = 5.0  # with a hundred streams


async def test_end_of_a_stream_goes_out_at_once_whatever_stream_flush_ms_says() -> None:
    async with running_platform() as platform, running_worker(platform, SETTINGS):
        going_on = {"messages": HELLO, "stream": True, "script": {"events": 1, "then": "hang"}}
        others = [platform.queue.submit(going_on) for _ in range(99)]
        await asyncio.gather(*(other.streamed(1, 60) for other in others))
        job = await platform.answer({"messages": HELLO, "stream": True, "script": {"events": 20, "pause": 0.02}})
        assert (job.state, len(events_of(job.stream))) == (JobState.COMPLETED, 21)
        assert len(job.stream) <= 3  # held: what came after the first output was one, with the end
        assert job.finished_at is not None
        assert job.taken_at is not None
        assert job.finished_at - job.taken_at < HOLD_SECONDS / 2
        for other in others:
            platform.queue.cancel(other)
