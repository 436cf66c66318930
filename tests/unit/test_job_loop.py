"""The job loop over a platform in memory: every job taken is answered or reported, at the worst of moments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from common.errors import JobError
from serverless import taking
from serverless.job_loop import JobLoop
from serverless.platform import PlatformError
from serverless.service import Job, JobHandler, Service
from tests.waiting import turns_of_the_loop, until

pytestmark = pytest.mark.anyio


class MemoryPlatform:
    """Hands out what is put into `jobs`; refuses posts with the next of `refusals`."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.outputs: list[Any] = []
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.refusals: list[PlatformError] = []
        self.in_progress: set[str] = set()
        self.hands_over_when_cancelled: list[Job] = []
        self.polls = 0

    async def take(self, most: int) -> list[Job]:
        self.polls += 1
        try:
            return [await self.jobs.get()]
        except asyncio.CancelledError:
            if self.hands_over_when_cancelled:
                return self.hands_over_when_cancelled
            raise

    async def stopped_jobs(self) -> list[str] | None:
        return None

    async def post_output(self, job: Job, output: Any) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.outputs.append(output)

    async def post_progress(self, job: Job, progress: Any) -> None:
        raise AssertionError("nobody reports progress here")

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.results.setdefault(job["id"], []).append(result)

    def begun(self, job_id: str) -> None:
        self.in_progress.add(job_id)

    def ended(self, job_id: str) -> None:
        self.in_progress.remove(job_id)


async def ready() -> None:
    return


async def never() -> str:
    await asyncio.Event().wait()
    return ""


def error_event(job: Job, error: JobError) -> str:
    return f"error event: {error.message}"


async def echo(job: Job) -> AsyncGenerator[Any, None]:
    yield job["input"]


async def hang(job: Job) -> AsyncGenerator[Any, None]:
    await asyncio.sleep(3600)
    yield "never"


async def stream_and_hang(job: Job) -> AsyncGenerator[Any, None]:
    yield "data: 1\n\n"
    await asyncio.sleep(3600)


async def raises(job: Job) -> AsyncGenerator[Any, None]:
    yield "half"
    raise RuntimeError("with user content in it")


def started(platform: MemoryPlatform, handler: JobHandler) -> JobLoop:
    loop = JobLoop(platform, Service(handler, ready, never, error_event), concurrency=lambda _: 5)
    loop.start()
    return loop


async def started_with_job(platform: MemoryPlatform, handler: JobHandler) -> JobLoop:
    """A loop that has taken job `a`."""
    loop = started(platform, handler)
    platform.jobs.put_nowait({"id": "a", "input": 5})
    await until(lambda: platform.polls == 2)
    return loop


async def idle(loop: JobLoop) -> None:
    """Return when nothing is in flight."""
    await until(lambda: not loop.in_flight)


def message_of(result: dict[str, Any]) -> str:
    message: str = json.loads(result["error"])["error"]["message"]
    return message


async def test_job_is_answered_and_counted() -> None:
    platform = MemoryPlatform()
    loop = await started_with_job(platform, echo)
    await idle(loop)
    assert platform.outputs == [5]
    assert platform.results == {"a": [{"output": [5]}]}
    assert platform.in_progress == set()
    await loop.stop(timeout_seconds=0)


async def test_job_that_arrives_with_the_end_of_the_last_poll_is_reported() -> None:
    platform = MemoryPlatform()
    loop = started(platform, echo)
    await until(lambda: platform.polls)
    platform.hands_over_when_cancelled = [{"id": "a", "input": 5}, {"id": "b", "input": 6}]
    await loop.stop(timeout_seconds=0)
    for job_id in ("a", "b"):
        [result] = platform.results[job_id]
        assert message_of(result) == "the worker stopped before this job was finished"
    assert platform.in_progress == set()


async def test_job_that_hangs_is_reported_when_the_time_is_up() -> None:
    platform = MemoryPlatform()
    loop = await started_with_job(platform, hang)
    await loop.stop(timeout_seconds=0.05, reason="the engine is gone")
    assert [message_of(result) for result in platform.results["a"]] == ["the engine is gone"]


async def test_stream_that_is_given_up_ends_with_an_error_event() -> None:
    platform = MemoryPlatform()
    loop = await started_with_job(platform, stream_and_hang)
    await until(lambda: platform.outputs)
    await loop.stop(timeout_seconds=0.05, reason="over")
    assert platform.outputs == ["data: 1\n\n", "error event: over"]
    assert [message_of(result) for result in platform.results["a"]] == ["over"]


async def test_handler_that_raises_fails_the_job_without_its_words() -> None:
    platform = MemoryPlatform()
    loop = await started_with_job(platform, raises)
    await idle(loop)
    assert [message_of(result) for result in platform.results["a"]] == ["the worker failed to handle this job"]
    await loop.stop(timeout_seconds=0)


async def test_job_without_an_id_is_no_job_and_one_sent_twice_is_one() -> None:
    platform = MemoryPlatform()
    loop = started(platform, hang)
    for job in ({"id": "a", "input": 1}, {"input": 1}, {"id": "", "input": 1}, {"id": "a", "input": 1}):
        platform.jobs.put_nowait(job)
    await until(lambda: platform.polls == 5)
    assert loop.in_flight == 1
    await loop.stop(timeout_seconds=0)
    assert len(platform.results["a"]) == 1


async def test_output_that_is_refused_for_good_is_still_in_the_result() -> None:
    platform = MemoryPlatform()
    platform.refusals = [PlatformError("the platform answered 413", 413)]
    loop = await started_with_job(platform, echo)
    await idle(loop)
    assert platform.results == {"a": [{"output": [5]}]}
    await loop.stop(timeout_seconds=0)


@pytest.mark.parametrize(
    ("status", "final"),
    [(None, False), (500, False), (429, False), (408, False), (400, True), (404, True), (413, True)],
)
def test_only_understood_refusals_are_final(status: int | None, final: bool) -> None:
    assert PlatformError("x", status).is_final is final


class SlowPlatform(MemoryPlatform):
    """Takes results only when it is told to; notes how many jobs each poll asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_results = asyncio.Event()
        self.asked: list[int] = []

    async def take(self, most: int) -> list[Job]:
        self.asked.append(most)
        jobs = [await self.jobs.get()]
        while len(jobs) < most and not self.jobs.empty():
            jobs.append(self.jobs.get_nowait())
        return jobs

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        await self.takes_results.wait()
        await super().post_result(job, result)


async def test_result_on_its_way_leaves_its_slot_to_the_next_job_but_results_do_not_pile_up() -> None:
    platform = SlowPlatform()
    loop = started(platform, echo)
    for number in range(20):
        platform.jobs.put_nowait({"id": f"job {number}", "input": number})
    await until(lambda: loop.in_flight == 10)
    await turns_of_the_loop()
    assert (loop.in_flight, platform.jobs.qsize()) == (10, 10)
    platform.takes_results.set()
    await until(lambda: len(platform.results) == 20)
    await loop.stop(timeout_seconds=0)


async def test_slots_that_become_free_together_are_filled_by_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "GATHERING_SECONDS", 0.1)
    platform, go_on = SlowPlatform(), asyncio.Event()
    platform.takes_results.set()

    async def wait(job: Job) -> AsyncGenerator[Any, None]:
        await go_on.wait()
        for _ in range(job["input"]):  # one after the other
            await asyncio.sleep(0)
        yield job["input"]

    for number in range(10):
        platform.jobs.put_nowait({"id": f"job {number}", "input": number})
    loop = started(platform, wait)
    await until(lambda: loop.in_flight == 5)
    await turns_of_the_loop()
    assert (platform.asked, loop.in_flight) == ([5], 5)
    go_on.set()
    await until(lambda: len(platform.asked) > 1)
    assert platform.asked[:2] == [5, 5]
    await loop.stop(timeout_seconds=0)
