"""The real SGLang's scheduler stands still while its server answers: noticed, killed, and the jobs sent again."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from embedded.conversations import conversation
from embedded.environment import engine_environment
from local_runpod import JobState
from scripts.worker_process import running_platform, running_worker
from sglang_engine.posix import is_alive, name_of
from tests.answers import error_of
from tests.waiting import START_SECONDS, until

pytestmark = pytest.mark.anyio

LONG = {"text": "Count: ", "sampling_params": {"max_new_tokens": 3500, "ignore_eos": True}}


async def test_stopped_scheduler_is_noticed_and_a_busy_one_left_alone() -> None:
    environment = {
        "REQUEST_TIMEOUT_SECONDS": "2",
        "SGLANG_HEALTH_CHECK_TIMEOUT": "4",  # by default 20 s
        "API_KEY": "sk-engine-key",  # SGLang's health routes do not ask for it
    }
    async with (
        running_platform() as platform,
        running_worker(platform, engine_environment({}) | environment, start_seconds=START_SECONDS) as worker,
    ):
        # Unstreamed, this is silent for longer than the time-out, while the scheduler works.
        before = worker.engine_pids()
        busy = await platform.answer(LONG, timeout_seconds=60)
        assert worker.engine_pids() == before, worker.log
        assert error_of(busy)["message"] == "the engine sent nothing for 2 s"

        [scheduler] = [pid for pid in before if name_of(pid).startswith("sglang::scheduler")]
        os.kill(scheduler, signal.SIGSTOP)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{worker.engine_url}/health")).status_code == 200, "the server sees nothing"
        greeting = conversation("greeting_without_thinking")
        job = await platform.answer(greeting.request(), timeout_seconds=START_SECONDS)
        assert job.state is JobState.COMPLETED, job.error
        assert job.output[0]["choices"][0]["message"]["content"] == greeting.content
        await until(lambda: "answers on /health, but its scheduler does not on /health_generate" in worker.log)
        assert not any(map(is_alive, before))
