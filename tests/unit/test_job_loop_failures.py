"""The job loop at its worst: posts, polls and handlers that raise what nobody foresaw, and a platform that is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.errors import JobError
from serverless import polling, reporting, running
from serverless.job_loop import JobLoop
from serverless.platform import STREAMED, Delivery, PlatformError
from serverless.service import Job, JobHandler, Service
from tests.waiting import until

pytestmark = pytest.mark.anyio


class ScriptedPlatform:
    """Answers each call with the next of its script, an exception or a value; then takes everything."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[Any] = asyncio.Queue()
        self.takes: list[Any] = []
        self.stops: asyncio.Queue[Any] = asyncio.Queue()
        self.output_failures: list[BaseException] = []
        self.result_failures: list[BaseException] = []
        self.outputs: list[Any] = []
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.polls = 0
        self.changed = asyncio.Event()

    async def take(self, most: int) -> list[Any]:
        self.polls += 1
        if self.takes:
            answer = self.takes.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return list(answer)
        return [await self.jobs.get()]

    async def stopped_jobs(self) -> list[str] | None:
        answer = await self.stops.get()
        if isinstance(answer, BaseException):
            raise answer
        return list(answer)

    async def post_output(self, job: Job, output: Any) -> None:
        if self.output_failures:
            raise self.output_failures.pop(0)
        self.outputs.append(output)

    async def post_progress(self, job: Job, progress: Any) -> None:
        raise AssertionError("nobody reports progress here")

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        if self.result_failures:
            raise self.result_failures.pop(0)
        self.results.setdefault(job["id"], []).append(result)
        self.changed.set()

    def begun(self, job_id: str) -> None:
        pass

    def ended(self, job_id: str) -> None:
        pass

    async def result(self, job_id: str = "a") -> dict[str, Any]:
        """The one result of a job, as soon as it is there."""
        await until(lambda: job_id in self.results)
        [result] = self.results[job_id]
        return result


async def ready() -> None:
    return


async def never() -> str:
    await asyncio.Event().wait()
    return ""


def error_event(job: Job, error: JobError) -> str:
    return f"error event: {error.message}"


async def echo(job: Job) -> AsyncGenerator[Any, None]:
    yield job["input"]


async def stream(job: Job) -> AsyncGenerator[Any, None]:
    for number in range(3):
        yield f"data: {number}\n\n"


@asynccontextmanager
async def running_loop(
    platform: ScriptedPlatform,
    handler: JobHandler = echo,
    *,
    delivery: Delivery = STREAMED,
    wait_until_ready: Callable[[], Awaitable[None]] = ready,
    **more: Any,
) -> AsyncIterator[JobLoop]:
    service = Service(handler, wait_until_ready, never, error_event, **more)  # type: ignore[arg-type]
    loop = JobLoop(platform, service, concurrency=lambda _: 5, delivery=delivery)
    loop.start()
    try:
        yield loop
    finally:
        await loop.stop(timeout_seconds=0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "FIRST_RETRY_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(polling, "ERROR_PAUSE_SECONDS", 0.01)


def message_of(result: dict[str, Any]) -> str:
    message: str = json.loads(result["error"])["error"]["message"]
    return message


@pytest.mark.parametrize("failure", [RuntimeError("bug"), ValueError(), OSError(24, "descriptors"), TimeoutError()])
async def test_result_survives_a_post_that_raises_the_unforeseen(failure: Exception) -> None:
    platform = ScriptedPlatform()
    platform.result_failures = [failure]
    async with running_loop(platform):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        assert await platform.result() == {"output": [5]}


async def test_result_that_can_never_be_posted_is_replaced_by_its_reason() -> None:
    platform = ScriptedPlatform()
    platform.result_failures = [RuntimeError("bug")] * reporting.UNEXPECTED_TRIES
    async with running_loop(platform):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        assert message_of(await platform.result()) == (
            "the platform did not take this job's result: unexpected RuntimeError"
        )


@pytest.mark.parametrize("failure", [RuntimeError("bug"), KeyError("x"), PlatformError("away"), TimeoutError()])
async def test_taking_and_cancelling_survive_what_a_poll_raises(failure: Exception) -> None:
    platform, cancelled = ScriptedPlatform(), asyncio.Event()

    async def hang(job: Job) -> AsyncGenerator[Any, None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            cancelled.set()

    platform.takes = [failure, failure]
    platform.stops.put_nowait(failure)
    async with running_loop(platform, hang) as loop:
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: loop.in_flight)
        platform.stops.put_nowait(["b", "a"])
        await asyncio.wait_for(cancelled.wait(), 20)


async def test_loop_that_breaks_says_why_and_reports_its_jobs(caplog: pytest.LogCaptureFixture) -> None:
    platform, calls, content = ScriptedPlatform(), 0, "a word of a user's"

    async def breaks_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError(content)

    async def hang(job: Job) -> AsyncGenerator[Any, None]:
        await asyncio.Event().wait()
        yield

    async with running_loop(platform, hang, wait_until_ready=breaks_later) as loop:
        platform.jobs.put_nowait({"id": "a", "input": 5})
        reason = await asyncio.wait_for(loop.wait_for_failure(), 20)
        assert reason == "taking jobs ended with RuntimeError"
        await loop.stop(timeout_seconds=0, reason=reason)
        assert message_of(await platform.result()) == reason
    assert "breaks_later" in caplog.text
    assert content not in caplog.text


@pytest.mark.parametrize("nothing", [[], [None], [{}], [{"input": 1}], [5], ["a"], [{"id": ""}], [{"id": ".."}]])
async def test_answers_without_anything_to_run_do_not_make_the_loop_spin(nothing: list[Any]) -> None:
    platform = ScriptedPlatform()
    platform.takes = [nothing] * 1000
    async with running_loop(platform):
        await asyncio.sleep(0.1)  # for hundreds of polls
    assert platform.polls <= 5


async def test_job_that_is_under_way_already_does_not_make_the_loop_spin() -> None:
    platform = ScriptedPlatform()
    platform.takes = [[{"id": "a", "input": 5}]] * 1000

    async def hang(job: Job) -> AsyncGenerator[Any, None]:
        await asyncio.Event().wait()
        yield

    async with running_loop(platform, hang) as loop:
        await asyncio.sleep(0.1)  # for hundreds of polls
        assert loop.in_flight == 1
    assert platform.polls <= 6


async def test_job_that_is_handed_over_again_while_its_cancelled_run_cleans_up_is_run() -> None:
    platform, runs, clean = ScriptedPlatform(), 0, asyncio.Event()

    async def slow_to_end(job: Job) -> AsyncGenerator[Any, None]:
        nonlocal runs
        runs += 1
        if runs == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await clean.wait()
        yield f"run {runs}"

    async with running_loop(platform, slow_to_end):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: runs)
        platform.stops.put_nowait(["a"])
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: platform.polls == 3)
        clean.set()
        assert await platform.result() == {"output": ["run 2"]}


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_handler_that_ends_the_process_ends_its_job_alone(end: BaseException) -> None:
    platform = ScriptedPlatform()

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        if job["id"] == "a":
            raise end
        yield job["id"]

    async with running_loop(platform, handler):
        for job_id in ("a", "b"):
            platform.jobs.put_nowait({"id": job_id, "input": 5})
        assert message_of(await platform.result("a")) == "the worker failed to handle this job"
        assert await platform.result("b") == {"output": ["b"]}


async def test_handler_that_cancels_itself_fails_its_job() -> None:
    platform = ScriptedPlatform()

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        raise asyncio.CancelledError
        yield

    async with running_loop(platform, handler):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        assert message_of(await platform.result()) == "the worker failed to handle this job"


async def test_handler_that_does_not_let_go_is_reported_over_its_head_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "CLEANUP_SECONDS", 0.05)
    platform, let_go = ScriptedPlatform(), asyncio.Event()

    async def stubborn(job: Job) -> AsyncGenerator[Any, None]:
        yield "data: 1\n\n"
        try:
            await asyncio.Event().wait()
        finally:
            await let_go.wait()

    async with running_loop(platform, stubborn) as loop:
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: platform.outputs)
        stopping = asyncio.create_task(loop.stop(timeout_seconds=0, reason="over"))
        assert message_of(await platform.result()) == "over"
        let_go.set()
        await stopping
    assert platform.outputs == ["data: 1\n\n", "error event: over"]
    assert len(platform.results["a"]) == 1


async def test_whole_answer_is_not_lost_with_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = ScriptedPlatform()
    platform.output_failures = [PlatformError("away")] * 1000
    async with running_loop(platform, is_whole_answer=lambda output: isinstance(output, dict)):
        platform.jobs.put_nowait({"id": "a", "input": {"answer": 42}})
        assert await platform.result() == {"output": [{"answer": 42}]}
    assert len(platform.output_failures) == 999, "it is only offered"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PlatformError("the platform answered 413", 413), "1 MB"),
        (PlatformError("the platform answered 400", 400), "did not take a part"),
    ],
)
async def test_hole_in_a_stream_is_its_end_and_the_result_has_it_all(failure: PlatformError, said: str) -> None:
    platform = ScriptedPlatform()

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        yield "data: 0\n\n"
        platform.output_failures = [failure]
        yield "data: 1\n\n"
        yield "data: 2\n\n"

    async with running_loop(platform, handler):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        assert await platform.result() == {"output": [f"data: {number}\n\n" for number in range(3)]}
    first, last = platform.outputs
    assert first == "data: 0\n\n"
    assert last.startswith("error event: ")
    assert said in last


async def test_stream_broken_by_an_outage_ends_with_an_error_as_soon_as_the_platform_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "OUTPUT_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(reporting, "LONGEST_RETRY_PAUSE_SECONDS", 0.02)
    platform, go_on = ScriptedPlatform(), asyncio.Event()
    platform.output_failures = [PlatformError("away")] * 10

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        yield "data: 0\n\n"
        await go_on.wait()
        yield "data: 1\n\n"

    async with running_loop(platform, handler):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: platform.outputs)
        assert platform.outputs == [f"error event: {running.BROKEN_OFF}"], "while the job still runs"
        go_on.set()
        assert await platform.result() == {"output": ["data: 0\n\n", "data: 1\n\n"]}


async def test_hole_fails_a_job_whose_result_would_not_have_it() -> None:
    platform = ScriptedPlatform()
    platform.output_failures = [PlatformError("refused", 400)]
    delivery = Delivery(streamed=True, result=lambda _: [], is_whole=False)
    async with running_loop(platform, stream, delivery=delivery):
        platform.jobs.put_nowait({"id": "a", "input": 5})
        assert message_of(await platform.result()) == running.BROKEN_OFF


async def test_last_event_of_a_broken_off_stream_leaves_time_for_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LAST_EVENT_SECONDS", 0.05)
    platform = ScriptedPlatform()

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        yield "data: 0\n\n"
        await asyncio.Event().wait()

    async with running_loop(platform, handler) as loop:
        platform.jobs.put_nowait({"id": "a", "input": 5})
        await until(lambda: platform.outputs)

        async def hang(job: Job, output: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(platform, "post_output", hang)
        await loop.stop(timeout_seconds=0, reason="over")
    assert [message_of(result) for result in platform.results["a"]] == ["over"]
