"""What the keys of an output mean, as in both SDKs, and which outputs are kept."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from serverless import loop_watch
from serverless.adapters import service_of
from serverless.job_loop import JobLoop
from serverless.platform import STREAMED, Delivery, the_only_one
from serverless.service import Job, Reading, read_keys
from tests.unit.test_progress import Platform
from tests.waiting import until

pytestmark = pytest.mark.anyio

NO_STREAM = Delivery(streamed=False, result=the_only_one)
NOT_KEPT = Delivery(streamed=True, result=lambda _: [], is_whole=False)


async def results_of(handler: Callable[[Job], Any], delivery: Delivery = NO_STREAM, **more: Any) -> Platform:
    """The platform once the job `a` is over."""
    platform = Platform()
    async with service_of(handler, **more)() as service:
        jobs = JobLoop(platform, service, concurrency=lambda _: 2, delivery=delivery)
        platform.jobs.put_nowait({"id": "a", "input": None})
        jobs.start()
        await until(lambda: platform.posts and platform.posts[-1][0] == "result")
        await until(lambda: not jobs.in_flight)
        await jobs.stop(timeout_seconds=0)
    return platform


@pytest.mark.parametrize(
    ("output", "reading"),
    [
        ("text", Reading("text")),
        (None, Reading(None)),
        ({}, Reading({})),
        ({"n": 1}, Reading({"n": 1})),
        ({"n": 1, "error": None}, Reading({"n": 1})),
        ({"n": 1, "error": ""}, Reading({"n": 1})),
        ({"error": None}, Reading({}, is_empty=True)),
        ({"n": 1, "error": "no"}, Reading({"n": 1}, error="no")),
        ({"error": {"code": 5}}, Reading({}, error='{"code": 5}', is_empty=True)),
        ({"error": ["n is a required input."]}, Reading({}, error='["n is a required input."]', is_empty=True)),
        ({"error": [{5}]}, Reading({}, error="[{5}]", is_empty=True)),
        ({"error": 5}, Reading({}, error="5", is_empty=True)),
        ({"n": 1, "refresh_worker": True}, Reading({"n": 1}, asks_refresh=True)),
        ({"n": 1, "refresh_worker": False}, Reading({"n": 1})),
        ({"refresh_worker": True}, Reading({}, asks_refresh=True, is_empty=True)),
        ({"error": "no", "refresh_worker": True}, Reading({}, error="no", asks_refresh=True, is_empty=True)),
        ([{"error": "inside"}], Reading([{"error": "inside"}])),
    ],
)
def test_keys_of_an_output(output: Any, reading: Reading) -> None:
    assert read_keys(output) == reading


@pytest.mark.parametrize(
    ("returned", "posted"),
    [
        ({"error": None, "n": 1}, {"n": 1}),
        ({"error": None}, {}),
        ({"refresh_worker": True}, {"stopPod": True}),
        ({"error": "no", "refresh_worker": True}, {"error": "no", "stopPod": True}),
    ],
)
async def test_result_of_an_output_with_keys(returned: Any, posted: dict[str, Any]) -> None:
    platform = await results_of(lambda job: returned)
    assert platform.posts == [("result", posted)]


async def test_refresh_of_the_configuration_goes_with_failures_too() -> None:
    def fails(job: Job) -> None:
        raise ValueError

    platform = await results_of(fails, refreshes=True)
    assert platform.posts[0][1]["stopPod"] is True
    assert "error" in platform.posts[0][1]


async def test_yield_that_only_asks_for_a_refresh_is_not_streamed() -> None:
    def steps(job: Job) -> Any:
        yield 1
        yield {"refresh_worker": True}

    assert (await results_of(steps, STREAMED)).posts == [("output", 1), ("result", [1])]


@pytest.mark.parametrize("change", [dict.clear, lambda job: job.pop("id"), lambda job: job.update(id="other")])
async def test_result_goes_to_its_job_whatever_the_handler_does_to_what_it_got(change: Callable[[Job], Any]) -> None:
    class Noting(Platform):
        async def post_result(self, job: Job, result: dict[str, Any]) -> None:
            self.posts.append((job["id"], result))

    def changes_it(job: Job) -> str:
        change(job)
        return "done"

    platform = Noting()
    async with service_of(changes_it)() as service:
        jobs = JobLoop(platform, service, concurrency=lambda _: 2, delivery=NO_STREAM)
        platform.jobs.put_nowait({"id": "a", "input": None})
        jobs.start()
        await until(lambda: platform.posts)
        await jobs.stop(timeout_seconds=0)
    assert platform.posts == [("a", {"output": "done"})]


class Large:
    """Something whose memory matters."""


async def test_outputs_that_no_result_needs_are_not_kept() -> None:
    references: list[weakref.ref[Large]] = []
    alive: list[int] = []

    class Forgetful(Platform):
        async def post_output(self, job: Job, output: Any) -> None:
            self.posts.append(("output", None))

    async def steps(job: Job) -> AsyncGenerator[Any, None]:
        for _ in range(5):
            large = Large()
            references.append(weakref.ref(large))
            yield large
            del large
            gc.collect()
            alive.append(sum(reference() is not None for reference in references))

    platform = Forgetful()
    async with service_of(steps)() as service:
        jobs = JobLoop(platform, service, concurrency=lambda _: 1, delivery=NOT_KEPT)
        platform.jobs.put_nowait({"id": "a", "input": None})
        jobs.start()
        await until(lambda: ("result", []) in platform.posts)
        await jobs.stop(timeout_seconds=0)
    assert max(alive) <= 1, "the one that was sent last"


async def test_async_handler_that_blocks_the_loop_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_watch, "BLOCKED_SECONDS", 0.2)
    monkeypatch.setattr(loop_watch, "TICK_SECONDS", 0.02)
    caplog.set_level(logging.WARNING)

    async def sleepy_handler(job: Job) -> int:
        time.sleep(0.6)  # noqa: ASYNC251
        return 1

    await results_of(sleepy_handler)
    await until(lambda: "has blocked the event loop for" in caplog.text)
    named = next(record.getMessage() for record in caplog.records if "blocks the event loop" in record.getMessage())
    assert named.startswith("job a blocks the event loop, in ")
    assert "sleepy_handler (test_sdk_outputs.py:" in named


async def test_plain_handler_that_takes_long_is_not_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_watch, "BLOCKED_SECONDS", 0.2)
    await results_of(lambda job: time.sleep(0.5))
    assert "blocks the event loop" not in caplog.text
