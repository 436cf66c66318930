"""How the worker ends: what is in flight is finished or reported, nothing is dropped, no process stays."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, running_platform, running_worker, start_worker
from sglang_engine.posix import is_alive
from tests.answers import error_of, events_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
HANGING = {"messages": HELLO, "stream": True, "script": {"then": "hang"}}
NOT_FINISHED = "the worker stopped before this job was finished"


@pytest.fixture(autouse=True)
async def quick_platform(platform: Platform) -> AsyncIterator[None]:
    yield
    platform.faults.refusals.clear()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", [{}, {"child": True}, {"child": True, "ignore_sigterm": True}], ids=str)
async def test_idle_worker_is_gone_within_5_s_with_all_its_processes(
    platform: Platform, engine: dict[str, Any], number: signal.Signals
) -> None:
    async with running_worker(platform, engine=engine) as worker:
        processes = [*worker.engine_pids(), *worker.children()]
        assert len(worker.engine_pids()) == (2 if "child" in engine else 1)
        began = time.monotonic()
        worker.process.send_signal(number)
        assert await worker.exit_code() == 0
        assert time.monotonic() - began < 5
        assert not any(map(is_alive, processes))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stopping_worker_finishes_what_is_in_flight(platform: Platform, number: signal.Signals) -> None:
    async with running_worker(platform) as worker:
        jobs = [
            platform.queue.submit({"messages": HELLO, "stream": True, "script": {"events": 20, "pause": 0.1}}),
            platform.queue.submit({"messages": HELLO, "script": {"pause": 2}}),
        ]
        await jobs[0].streamed(1, 10)
        worker.process.send_signal(number)
        assert await worker.exit_code() == 0
        assert [job.state for job in jobs] == [JobState.COMPLETED] * 2
        assert events_of(jobs[0].stream)[-1] == "[DONE]"


async def test_job_that_a_poll_brings_while_the_worker_stops_is_answered() -> None:
    async with running_platform(long_poll_seconds=60) as platform, running_worker(platform) as worker:
        first = platform.queue.submit({"messages": HELLO, "script": {"pause": 4}})
        await first.taken()
        await until(lambda: platform.queue.workers()["ready"])  # the next poll is in flight
        worker.process.send_signal(signal.SIGTERM)
        await until(lambda: "told to stop" in worker.log)
        brought = platform.queue.submit({"messages": HELLO})
        assert (await brought.finished(10)).state is JobState.COMPLETED
        late = platform.queue.submit({"messages": HELLO})
        assert await worker.exit_code() == 0
        assert first.state is JobState.COMPLETED
        assert late.state is JobState.IN_QUEUE, "no poll follows that one"


async def test_stopping_worker_reports_what_it_cannot_finish(platform: Platform) -> None:
    async with running_worker(platform, {"SHUTDOWN_TIMEOUT_SECONDS": "0.5"}) as worker:
        streaming = platform.queue.submit(HANGING)
        waiting = platform.queue.submit({"messages": HELLO, "script": {"pause": 60}})
        await streaming.streamed(1, 10)
        began = time.monotonic()
        assert await worker.stop() == 0
        assert time.monotonic() - began < 8
        for job in (streaming, waiting):
            assert (error_of(job)["message"], error_of(job)["code"], job.answers) == (NOT_FINISHED, 503, 1)
        assert events_of(streaming.stream)[-1] == {"error": error_of(streaming)}
        assert waiting.stream == []


async def test_result_on_its_way_when_the_time_is_up_is_not_cut(platform: Platform) -> None:
    async with running_worker(platform, {"SHUTDOWN_TIMEOUT_SECONDS": "0.5"}) as worker:
        platform.faults.stalls["job-done"] = [2.0]
        job = platform.queue.submit({"messages": HELLO})
        await until(lambda: not platform.faults.stalls["job-done"])  # the result is on its way
        assert await worker.stop() == 0
        assert (job.state, job.answers) == (JobState.COMPLETED, 1)


async def test_second_signal_hurries(platform: Platform) -> None:
    async with running_worker(platform) as worker:
        job = platform.queue.submit(HANGING)
        await job.streamed(1, 10)
        began = time.monotonic()
        worker.process.send_signal(signal.SIGINT)
        await until(lambda: "told to stop" in worker.log)
        worker.process.send_signal(signal.SIGINT)
        assert await worker.exit_code() == 0
        assert time.monotonic() - began < 8
        assert error_of(job)["message"] == NOT_FINISHED


async def test_worker_told_to_stop_while_the_engine_loads_is_gone_at_once(platform: Platform) -> None:
    worker = await start_worker(platform, engine={"ready_after": 600})
    await until(lambda: "the engine was started" in worker.log)
    began = time.monotonic()
    assert await worker.stop() == 0
    assert time.monotonic() - began < 5


async def test_results_that_the_platform_does_not_take_at_first_are_sent_again(platform: Platform) -> None:
    async with running_worker(platform):
        platform.faults.refusals["job-done"] = [429, 500, 503, 408]
        job = await platform.answer({"messages": HELLO, "stream": True})
        assert (job.state, job.answers) == (JobState.COMPLETED, 1)
        platform.faults.refusals["job-stream"] = [429, 502, 500]
        job = await platform.answer({"messages": HELLO, "stream": True})
        assert [event["index"] for event in events_of(job.stream)[:-1]] == [0, 1, 2]


async def test_result_that_the_platform_refuses_is_reported_failed(platform: Platform) -> None:
    async with running_worker(platform):
        platform.faults.refusals["job-done"] = [413]
        job = await platform.answer({"messages": HELLO})
        error = error_of(job)
        assert error["code"] == 502
        assert error["message"] == "the platform did not take this job's result: the platform answered 413"
