"""How outputs flow: at once when the platform is quick, gathered when it is slow, held back when it is slower."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from gateway.sse import MAX_BATCH_BYTES
from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from tests.answers import events_of
from tests.waiting import ENOUGH_SECONDS, until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
async def quick_platform(platform: Platform) -> AsyncIterator[None]:
    yield
    platform.faults.latency_seconds = 0.0
    platform.faults.refusals.clear()


async def test_first_event_goes_out_while_the_engine_still_streams(platform: Platform, worker: Worker) -> None:
    job = platform.queue.submit({"messages": HELLO, "stream": True, "script": {"events": 1, "then": "hang"}})
    await job.streamed(1, 10)
    assert job.state is JobState.IN_PROGRESS
    assert len(events_of(job.stream)) == 1
    platform.queue.cancel(job)


async def test_events_gather_while_an_output_is_on_its_way(platform: Platform, worker: Worker) -> None:
    platform.faults.latency_seconds = 0.2
    began = time.monotonic()
    job = await platform.answer({"messages": HELLO, "stream": True, "script": {"events": 100, "pause": 0.02}})
    assert [event["index"] for event in events_of(job.stream)[:-1]] == list(range(100))
    # At most five posts a second, of fifty events; and the first is not held back to fill up.
    assert len(job.stream) <= (time.monotonic() - began) / 0.2
    assert len(events_of(job.stream[:1])) < 50


async def test_no_output_exceeds_the_limit(platform: Platform, worker: Worker) -> None:
    platform.faults.latency_seconds = 0.3
    script = {"events": 40, "text": "x" * 100_000}
    job = await platform.answer({"messages": HELLO, "stream": True, "script": script})
    assert job.state is JobState.COMPLETED
    assert len(events_of(job.stream)) == 41
    assert max(len(output.encode()) for output in job.stream) <= MAX_BATCH_BYTES
    assert min(len(output.encode()) for output in job.stream[1:-1]) > MAX_BATCH_BYTES / 2


async def test_slow_platform_holds_the_engine_back_and_memory_flat(platform: Platform, worker: Worker) -> None:
    platform.faults.latency_seconds = 0.5
    before = _memory_bytes(worker.process.pid)
    job = platform.queue.submit({"messages": HELLO, "stream": True, "script": {"events": 400, "text": "x" * 250_000}})
    await job.streamed(3, 30)
    running = (await worker.engine_requests())[-1]
    assert running["end"] == "running", "the engine could write 100 MB to a client that took 1.5 MB"
    assert _memory_bytes(worker.process.pid) - before < 40e6
    aborted = await _aborted(worker)
    platform.queue.cancel(job)
    await _until_aborted(worker, aborted + 1)


@pytest.mark.parametrize("route", ["job-stream", "job-done"])
async def test_output_that_the_platform_refuses_at_first_is_posted_again(
    platform: Platform, worker: Worker, route: str
) -> None:
    platform.faults.refusals[route] = [500]
    job = await platform.answer({"messages": HELLO, "stream": True})
    assert events_of(job.stream)[-1] == "[DONE]"
    assert job.answers == 1


async def test_worker_takes_jobs_again_after_the_platform_failed(platform: Platform, worker: Worker) -> None:
    platform.faults.refusals["job-take-batch"] = [500, 502, 400]
    await platform.answer({"messages": HELLO})  # ends the poll in flight
    assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
async def test_cancelled_job_aborts_upstream_within_a_second(platform: Platform, worker: Worker, stream: bool) -> None:
    script = {"events": 2, "then": "hang"} if stream else {"pause": 60}
    job = platform.queue.submit({"messages": HELLO, "stream": stream, "script": script})
    other = platform.queue.submit({"messages": HELLO, "stream": True, "script": {"events": 15, "pause": 0.1}})
    await other.streamed(2, 10)
    aborted, began = await _aborted(worker), time.monotonic()
    platform.queue.cancel(job)
    await _until_aborted(worker, aborted + 1)
    assert time.monotonic() - began < 1.0
    await other.finished(10)
    assert other.state is JobState.COMPLETED
    assert job.answers == 0


async def test_cancelled_job_aborts_upstream_while_an_output_is_on_its_way(platform: Platform, worker: Worker) -> None:
    job = platform.queue.submit({"messages": HELLO, "stream": True, "script": {"events": 500, "pause": 0.01}})
    await job.streamed(1, 10)
    platform.faults.stalls["job-stream"] = [5.0]
    await until(lambda: not platform.faults.stalls["job-stream"])  # an output is being posted, the handler waits
    aborted, began = await _aborted(worker), time.monotonic()
    platform.queue.cancel(job)
    await _until_aborted(worker, aborted + 1)
    assert time.monotonic() - began < 1.0


async def _aborted(worker: Worker) -> int:
    """How many requests the engine has seen aborted so far."""
    return [request["end"] for request in await worker.engine_requests()].count("aborted")


async def _until_aborted(worker: Worker, count: int) -> None:
    async with asyncio.timeout(ENOUGH_SECONDS):
        while await _aborted(worker) < count:
            await asyncio.sleep(0.02)


def _memory_bytes(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096
