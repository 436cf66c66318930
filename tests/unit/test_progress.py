"""Progress reports: in order, before the result or not at all, and never a reason to fail."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serverless import progress, reporting
from serverless.adapters import as_job_handler
from serverless.job_loop import JobLoop
from serverless.platform import STREAMED, Delivery, PlatformError, the_only_one
from serverless.progress import progress_update, received_by
from serverless.service import Job, Service
from tests.waiting import until

pytestmark = pytest.mark.anyio

NO_STREAM = Delivery(streamed=False, result=the_only_one)


class Platform:
    """Hands out jobs, and notes every post in the order in which it was taken."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.posts: list[tuple[str, Any]] = []
        self.before_progress: Callable[[Any], Awaitable[None]] | None = None
        self.stops: asyncio.Queue[list[str]] = asyncio.Queue()

    async def take(self, most: int) -> list[Job]:
        return [await self.jobs.get()]

    async def stopped_jobs(self) -> list[str] | None:
        return await self.stops.get()

    async def post_output(self, job: Job, output: Any) -> None:
        self.posts.append(("output", output))

    async def post_progress(self, job: Job, progress: Any) -> None:
        if self.before_progress is not None:
            await self.before_progress(progress)
        self.posts.append(("progress", progress))

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        self.posts.append(("result", result.get("output", result)))

    def begun(self, job_id: str) -> None:
        pass

    def ended(self, job_id: str) -> None:
        pass


async def ready() -> None:
    return


async def never() -> str:
    await asyncio.Event().wait()
    return ""


@asynccontextmanager
async def working(
    platform: Platform, handler: Callable[[Job], Any], delivery: Delivery = NO_STREAM
) -> AsyncIterator[JobLoop]:
    """A loop that has been given the job `a`."""
    jobs = JobLoop(platform, Service(as_job_handler(handler), ready, never), concurrency=lambda _: 2, delivery=delivery)
    platform.jobs.put_nowait({"id": "a", "input": None})
    with received_by(jobs.progress):
        jobs.start()
        yield jobs
        await jobs.stop(timeout_seconds=0)


async def posts_of(handler: Callable[[Job], Any], delivery: Delivery = NO_STREAM) -> list[tuple[str, Any]]:
    platform = Platform()
    async with working(platform, handler, delivery):
        await until(lambda: platform.posts and platform.posts[-1][0] == "result")
    return platform.posts


def function(job: Job) -> str:
    for step in range(5):
        assert progress_update(job, step) is True
    return "done"


async def coroutine(job: Job) -> str:
    return function(job)  # without a single await


def generator(job: Job) -> Any:
    yield function(job)


async def async_generator(job: Job) -> AsyncGenerator[Any, None]:
    yield function(job)


def helper_threads(job: Job) -> str:
    for step in range(5):
        helper = threading.Thread(target=progress_update, args=(job, step))
        helper.start()
        helper.join()
    return "done"


@pytest.mark.parametrize("handler", [function, coroutine, helper_threads])
async def test_reports_go_in_order_and_before_the_result(handler: Callable[[Job], Any]) -> None:
    assert await posts_of(handler) == [*(("progress", step) for step in range(5)), ("result", "done")]


@pytest.mark.parametrize("handler", [generator, async_generator])
async def test_a_stream_may_report_too(handler: Callable[[Job], Any]) -> None:
    posts = await posts_of(handler, STREAMED)
    assert [post for post in posts if post[0] == "progress"] == [("progress", step) for step in range(5)]
    assert posts[-1] == ("result", ["done"])
    assert ("output", "done") in posts


async def test_a_report_that_is_not_taken_does_not_hold_up_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless.running.LAST_REPORTS_SECONDS", 0.05)
    platform, began = Platform(), asyncio.Event()

    async def hang(_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    platform.before_progress = hang
    async with working(platform, function):
        await until(lambda: platform.posts)
    assert platform.posts == [("result", "done")]
    assert began.is_set()


async def test_refused_report_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "PROGRESS_RETRY_SECONDS", 0.0)
    platform = Platform()

    async def refuse(value: Any) -> None:
        if value == 2:
            raise PlatformError("the platform answered 500", 500)

    platform.before_progress = refuse
    async with working(platform, function):
        await until(lambda: ("result", "done") in platform.posts)
    assert [value for kind, value in platform.posts if kind == "progress"] == [0, 1, 3, 4]
    assert "job a: a report of its progress was not taken by the platform: the platform answered 500" in caplog.text


async def test_only_the_newest_wait_for_a_slow_platform(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "MOST_WAITING", 3)
    caplog.set_level(logging.INFO)
    platform, go_on = Platform(), asyncio.Event()

    async def wait(_: Any) -> None:
        await go_on.wait()

    async def chatty(job: Job) -> str:
        progress_update(job, 0)
        await until(lambda: platform.before_progress is None)  # the first is being sent
        for step in range(1, 11):
            progress_update(job, step)
        go_on.set()
        return "done"

    async def first(value: Any) -> None:
        platform.before_progress = None
        await go_on.wait()

    platform.before_progress = first
    async with working(platform, chatty):
        await until(lambda: ("result", "done") in platform.posts)
    assert platform.posts == [("progress", step) for step in (0, 8, 9, 10)] + [("result", "done")]
    assert "job a: 7 reports of its progress were not sent" in caplog.text


async def test_cancelled_job_reports_no_more() -> None:
    platform, goes_on, result = Platform(), threading.Event(), []

    def stubborn(job: Job) -> None:
        progress_update(job, "first")
        goes_on.wait(10)
        result.append(progress_update(job, "late"))

    async with working(platform, stubborn) as jobs:
        await until(lambda: platform.posts)
        platform.stops.put_nowait(["a"])
        await until(lambda: not jobs.in_flight)
        goes_on.set()
        await until(lambda: result)
    assert (result, platform.posts) == ([False], [("progress", "first")])


async def test_value_is_sent_as_it_was_when_reported() -> None:
    async def changes_it(job: Job) -> str:
        state = {"done": 1}
        progress_update(job, state)
        state["done"] = 2
        return "done"

    assert (await posts_of(changes_it))[0] == ("progress", {"done": 1})


@pytest.mark.parametrize(
    ("value", "arrives"),
    [("text", True), (None, True), (10**30, True), ("\ud800", True), ({1, 2}, False), (object(), False)],
)
async def test_any_json_may_be_reported(value: Any, arrives: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def report(job: Job) -> bool:
        return progress_update(job, value)

    posts = await posts_of(report)
    assert posts == [("progress", value)] * arrives + [("result", arrives)]
    assert ("its progress is not JSON" in caplog.text) is not arrives


async def test_platform_without_progress_gets_none_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def report(job: Job) -> list[bool]:
        return [progress_update(job, step) for step in range(3)]

    posts = await posts_of(report, Delivery(streamed=False, result=the_only_one, reports_progress=False))
    assert posts == [("result", [False] * 3)]
    assert caplog.text.count("progress_update sends nothing here") == 1


class SdkJob:
    """A job as WaveSpeed's SDK passes it around: an object with an id."""

    id = "a"


@pytest.mark.parametrize(("job", "is_known"), [({"id": "a"}, True), (SdkJob(), True), ({}, False), (None, False)])
def test_job_is_told_by_its_id(job: Any, is_known: bool) -> None:
    seen: list[Any] = []

    def receive(job_id: str, value: Any) -> bool:
        seen.append((job_id, value))
        return True

    with received_by(receive):
        assert progress_update(job, 1) is is_known
    assert seen == [("a", 1)] * is_known


def test_report_outside_of_a_worker_is_dropped() -> None:
    assert progress_update({"id": "a"}, 1) is False
