"""A worker that cannot start: callers get the reason, or the next worker gets the jobs."""

from __future__ import annotations

import time
from typing import Any

import pytest

from common.web_server import serving
from local_runpod import JobState
from scripts.worker_process import REPOSITORY, Platform, Worker, running_platform, start_worker
from tests.answers import error_of
from tests.waiting import until
from tests.worker.waverless import Waverless

pytestmark = pytest.mark.anyio

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
NOT_FOUND = {"exit_code": 1, "says": "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error\n"}


def told(platform: Platform | Waverless, worker_id: str) -> list[dict[str, str]]:
    """What the platform was told of an unhealthy worker."""
    return [ping for ping in platform.queue.pings.get(worker_id, []) if ping.get("status") == "unhealthy"]


async def start(platform: Platform, name: str, environment: dict[str, str], **more: Any) -> Worker:
    return await start_worker(platform, {"RUNPOD_POD_ID": name} | environment, **more)


async def test_jobs_fail_with_the_diagnosis_where_no_worker_could_start_and_then_the_worker_ends() -> None:
    async with running_platform() as platform:
        jobs = [platform.queue.submit(HELLO), platform.queue.submit(HELLO | {"stream": True})]
        began = time.monotonic()
        worker = await start(platform, "lasting", {"FAILED_START_SECONDS": "4"}, engine=NOT_FOUND)
        for job in jobs:
            error = error_of(await job.finished(20))
            assert error["message"].startswith(
                "this worker cannot start: while starting, the engine exited with code 1"
            )
            assert "the model was not found, or is private; check MODEL_NAME" in error["message"]
            assert (error["code"], error["type"]) == (503, "server_error")
        late = platform.queue.submit(HELLO)
        assert "the model was not found" in error_of(await late.finished(20))["message"]
        assert worker.process.returncode is None
        assert await worker.exit_code() == 1
        assert time.monotonic() - began > 4
        [ping] = told(platform, "lasting")
        assert ping["check"] == "model"
        assert "the model was not found" in ping["reason"]
        assert len(worker.engine_starts()) == 1
        assert "Traceback" not in worker.log


@pytest.mark.parametrize(
    ("says", "check", "told_to_callers"),
    [
        (
            "GatedRepoError: 403 Client Error. Cannot access gated repo",
            "model",
            "set HF_TOKEN to a token of that account",
        ),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "kv_cache", "the KV cache"),
        ("launch_server.py: error: argument --dtype: invalid choice: 'f8'", "option", "an option that SGLang does not"),
    ],
    ids=["gated", "KV cache", "option"],
)
async def test_every_cause_that_no_other_host_would_mend_is_told_to_callers(
    says: str, check: str, told_to_callers: str
) -> None:
    async with running_platform() as platform:
        job = platform.queue.submit(HELLO)
        worker = await start(platform, "x", {"FAILED_START_SECONDS": "2"}, engine={"exit_code": 1, "says": f"{says}\n"})
        assert told_to_callers in error_of(await job.finished(20))["message"]
        assert await worker.exit_code() == 1
        assert [ping["check"] for ping in told(platform, "x")] == [check]


async def test_wrong_settings_are_told_to_callers_all_at_once() -> None:
    async with running_platform() as platform:
        job = platform.queue.submit(HELLO)
        wrong = {"MAX_N": "many", "LOG_REQUESTS": "maybe", "FAILED_START_SECONDS": "2", "API_KEY": "sk-engine-key"}
        worker = await start(platform, "wrong", wrong)
        message = error_of(await job.finished(20))["message"]
        assert "LOG_REQUESTS='maybe': expected true or false" in message
        assert "MAX_N='many': expected a whole number of at least 1" in message
        assert await worker.exit_code() == 2
        [ping] = told(platform, "wrong")
        assert ping["check"] == "settings"
        assert "LOG_REQUESTS='maybe'" in ping["reason"]
        assert not worker.starts_path.exists(), "nothing was started"
        assert "sk-engine-key" not in worker.log + message


async def test_stop_ends_the_waiting_for_jobs() -> None:
    async with running_platform() as platform:
        worker = await start(platform, "stopped", {"PORT": "http"})
        assert "PORT='http'" in error_of(await platform.answer(HELLO))["message"]
        assert await worker.stop() == 0


@pytest.mark.parametrize(
    ("environment", "engine", "code", "check"),
    [
        ({"FAILED_START_SECONDS": "0"}, NOT_FOUND, 1, "model"),
        ({"FAILED_START_SECONDS": "0", "PORT": "http"}, {}, 2, "settings"),
        ({}, {"exit_code": 1, "says": "OSError: [Errno 28] No space left on device\n"}, 1, "disk"),
        ({}, {"exit_code": 1, "says": "RuntimeError: No CUDA GPUs are available\n"}, 1, "gpu"),
        ({}, {"exit_code": 1, "says": "RuntimeError: The NVIDIA driver on your system is too old\n"}, 1, "driver"),
        (
            {},
            {"exit_code": 1, "says": "ERROR: [Errno 98] bind on ('127.0.0.1', 1): address already in use\n"},
            1,
            "port",
        ),
        ({}, {"exit_code": 7}, 1, "engine"),
    ],
    ids=["no time given", "no time given, settings", "disk", "no GPU", "old driver", "port", "unknown"],
)
async def test_job_is_left_to_the_next_worker_where_that_could_start(
    environment: dict[str, str], engine: dict[str, Any], code: int, check: str
) -> None:
    async with running_platform() as platform:
        job = platform.queue.submit(HELLO)
        worker = await start(platform, "host", environment, engine=engine)
        assert await worker.exit_code() == code
        assert job.state is JobState.IN_QUEUE
        [ping] = told(platform, "host")
        assert ping["check"] == check
        assert len(ping["reason"]) > 10


async def test_waverless_is_told_too() -> None:
    platform = Waverless()
    async with serving(platform.app(), "127.0.0.1", 0) as port:
        platform.base_url = f"http://127.0.0.1:{port}"
        job = platform.queue.submit(HELLO)
        environment = platform.environment() | {"WAVERLESS_HEALTH_PORT": "0", "FAILED_START_SECONDS": "2"}
        worker = await start_worker(None, environment)
        assert "WAVERLESS_HEALTH_PORT='0'" in error_of(await job.finished(20))["message"]
        assert await worker.exit_code() == 2
        await until(lambda: told(platform, "pod-7"))
        assert [ping["check"] for ping in told(platform, "pod-7")] == ["settings"]
        assert platform.refused == []


async def test_jobs_of_a_handler_of_one_s_own_are_told_of_wrong_settings_too() -> None:
    async with running_platform() as platform:
        job = platform.queue.submit({"n": 1})
        program = {"OWN_HANDLER": "function", "PYTHONPATH": str(REPOSITORY)}
        wrong = program | {"MAX_CONCURRENCY": "many", "FAILED_START_SECONDS": "2"}
        worker = await start(platform, "own", wrong, program=REPOSITORY / "tests" / "worker" / "own_handlers.py")
        assert "MAX_CONCURRENCY='many'" in error_of(await job.finished(20))["message"]
        assert await worker.exit_code() == 2
