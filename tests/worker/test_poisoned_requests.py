"""Requests that kill engines: they are found, they fail alone, and the worker goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from local_runpod import JobState
from scripts.worker_process import Platform, running_platform, running_worker
from tests.answers import error_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
POISON = {"messages": HELLO, "script": {"pause": 0.2, "then": "crash"}}
SLOW = {"messages": HELLO, "script": {"pause": 1.5}}
VOCABULARY = 1000


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


async def test_poisoned_requests_fail_alone_and_the_worker_goes_on(platform: Platform) -> None:
    async with running_worker(platform) as worker:  # three restarts, as by default
        for _ in range(3):
            innocent = [platform.queue.submit(SLOW) for _ in range(3)]
            await asyncio.gather(*(job.taken() for job in innocent))
            poison = platform.queue.submit(POISON)
            error = error_of(await poison.finished(60))
            assert "the job is the likely cause" in error["message"]
            await until(lambda id_=poison.id: f"job {id_}: " in worker.log)  # type: ignore[misc]
            assert [(await job.finished(60)).state for job in innocent] == [JobState.COMPLETED] * 3
            # Deaths are not held against an engine that has answered something since the last poison.
            assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED
    assert worker.process.returncode == 0


async def test_engine_that_dies_of_everything_is_given_up(platform: Platform) -> None:
    async with running_worker(platform, {"ENGINE_MAX_RESTARTS": "2"}) as worker:
        jobs = [platform.queue.submit(POISON) for _ in range(4)]
        assert [(await job.finished(60)).state for job in jobs] == [JobState.FAILED] * 4
        assert await worker.exit_code() == 1


async def test_token_ids_outside_the_vocabulary_are_refused_before_the_engine_sees_them(platform: Platform) -> None:
    async with running_worker(platform, engine={"vocabulary": VOCABULARY}) as worker:
        for job_input in (
            {"openai_route": "/v1/completions", "openai_input": {"prompt": [5, VOCABULARY]}},
            {"input_ids": [[1], [-1]]},
        ):
            error = error_of(await platform.answer(job_input))
            assert (error["code"], error["type"]) == (400, "invalid_request_error")
            assert f"valid ids are from 0 to {VOCABULARY - 1}" in error["message"]
        assert (await platform.answer({"input_ids": [VOCABULARY - 1]})).state is JobState.COMPLETED
        asked = [request["body"] for request in await worker.engine_requests() if request["body"]]
        assert len([body for body in asked if "token_ids_logprob" in body]) == 1, "it is asked once"
        assert len(asked) == 2
        await until(lambda: worker.engine_pid())
