"""`serverless.start` with handlers of every kind: in local mode, as a worker on both platforms, and in API mode."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

import serverless
from common.web_server import serving
from local_runpod import JobState
from scripts.worker_process import (
    REPOSITORY,
    SCRIPTED_ENGINE,
    Platform,
    Worker,
    free_port,
    running_platform,
    start_worker,
)
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio

PROGRAM = REPOSITORY / "tests" / "worker" / "own_handlers.py"
THREE = {"n": 3}

# Handler, its result, and what it streams.
KINDS = [
    ("function", {"twice": 6}, []),
    ("coroutine", 6, []),
    ("generator", [{"n": 0}, {"n": 1}, {"n": 2}], [{"n": 0}, {"n": 1}, {"n": 2}]),
    ("async_generator", [0, 1, 2], [0, 1, 2]),
]


async def start(handler: str, *arguments: str, **more: Any) -> Worker:
    environment = {
        "OWN_HANDLER": handler,
        "PYTHONPATH": f"{SCRIPTED_ENGINE}:{REPOSITORY}",
        **more.pop("environment", {}),
    }
    return await start_worker(more.pop("platform", None), environment, arguments=arguments, program=PROGRAM, **more)


@asynccontextmanager
async def running(handler: str, *arguments: str, **more: Any) -> AsyncIterator[Worker]:
    worker = await start(handler, *arguments, **more)
    try:
        yield worker
    finally:
        assert await worker.stop() == 0, worker.log


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


@pytest.mark.parametrize(("handler", "result", "streamed"), KINDS)
async def test_local_mode(handler: str, result: Any, streamed: list[Any]) -> None:
    worker = await start(handler, "--test_input", json.dumps({"input": THREE}), stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(worker.process.communicate(), 20)
    assert json.loads(output) == {"id": "local_test", "status": "COMPLETED", "output": result}


@pytest.mark.parametrize(("handler", "result", "streamed"), KINDS)
async def test_worker_on_runpod(platform: Platform, handler: str, result: Any, streamed: list[Any]) -> None:
    async with running(handler, platform=platform, environment={"AGGREGATE": "yes"}):
        job = await platform.answer(THREE)
    assert (job.stream, job.output) == (streamed, result)


async def test_generator_s_outputs_are_no_result_unless_that_is_asked_for(platform: Platform) -> None:
    async with running("generator", platform=platform):
        job = await platform.answer(THREE)
    assert (len(job.stream), job.output) == (3, [])


@pytest.mark.parametrize(("handler", "result", "streamed"), KINDS)
async def test_worker_on_waverless(handler: str, result: Any, streamed: list[Any]) -> None:
    waverless = Waverless()
    async with serving(waverless.app(), "127.0.0.1", 0) as port:
        waverless.base_url = f"http://127.0.0.1:{port}"
        environment = waverless.environment() | {"WAVERLESS_HEALTH_PORT": str(free_port())}
        async with running(handler, environment=environment):
            job = await waverless.queue.submit(THREE).finished(20)
    assert job.output == (result if isinstance(result, dict) else {"output": result})
    assert (job.answers, waverless.refused) == (1, [])


@pytest.mark.parametrize(
    ("handler", "result", "flags"), [("function", {"twice": 6}, "rp"), ("async_generator", [0, 1, 2], "waverless")]
)
async def test_api_mode(handler: str, result: Any, flags: str) -> None:
    port = free_port()
    arguments = (f"--{flags}_serve_api", f"--{flags}_api_port", str(port))
    async with running(handler, *arguments, environment={"AGGREGATE": "yes"}) as worker:
        answer = await ask(worker, f"http://127.0.0.1:{port}/runsync", THREE)
    assert (answer["status"], answer["output"]) == ("COMPLETED", result)


async def ask(worker: Worker, url: str, job_input: Any) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client, asyncio.timeout(20):
        while True:
            try:
                answer: dict[str, Any] = (await client.post(url, json={"input": job_input})).json()
                return answer
            except httpx.ConnectError:
                assert worker.process.returncode is None, worker.log
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("handler", "message"), [("raises", "the worker failed to handle this job"), ("no_json", "it is not JSON")]
)
async def test_failure_is_reported_without_user_content(platform: Platform, handler: str, message: str) -> None:
    async with running(handler, platform=platform) as worker:
        job = await platform.answer({"text": "from the user"})
    assert job.state is JobState.FAILED
    assert message in str(job.error)
    assert "from the user" not in worker.log + str(job.error)


async def test_input_is_validated_as_the_sdk_does_it(platform: Platform) -> None:
    async with running("function", platform=platform):
        errors = [(await platform.answer(job_input)).error for job_input in ({}, {"n": "x"}, {"n": 100}, {"m": 1})]
    assert errors == [
        "n is a required input.",
        "n should be <class 'int'> type, not <class 'str'>.",
        "n does not meet the constraints.",
        "Unexpected input. m is not a valid input option.; n is a required input.",
    ]


async def test_concurrency_grows_as_the_modifier_says(platform: Platform) -> None:
    async with running("crowd", platform=platform):
        jobs = [platform.queue.submit({}) for _ in range(20)]
        crowds = [(await job.finished(20)).output for job in jobs]
    assert max(crowds) == 5


async def test_concurrency_of_the_api_is_the_flag_s() -> None:
    port = free_port()
    async with running("crowd", "--rp_serve_api", "--rp_api_port", str(port), "--rp_api_concurrency", "2") as worker:
        url = f"http://127.0.0.1:{port}/runsync"
        await ask(worker, url, {})
        answers = await asyncio.gather(*(ask(worker, url, {}) for _ in range(6)))
    assert max(answer["output"] for answer in answers) == 2


def test_start_needs_a_function() -> None:
    configs: list[dict[str, Any]] = [{}, {"handler": 5}, {"handler": print, "concurrency_modifier": 5}]
    for config in configs:
        with pytest.raises(TypeError):
            serverless.start(config)
