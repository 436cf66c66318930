"""The real SGLang loses its scheduler under load: every job is answered, after a restart, or failed with the reason."""

from __future__ import annotations

import os
import signal
import time

import pytest

from embedded.conversations import CONVERSATIONS, conversation
from local_runpod import JobState
from scripts.worker_process import Platform, Worker
from sglang_engine.posix import is_alive, name_of
from tests.answers import error_of, events_of
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.anyio

ENDLESS = {"text": "Count: ", "stream": True, "sampling_params": {"max_new_tokens": 600, "ignore_eos": True}}
UNSTREAMED = {**ENDLESS, "stream": False}


async def test_killed_scheduler_under_load_loses_no_job(platform: Platform, worker: Worker) -> None:
    streams = [platform.queue.submit(ENDLESS) for _ in range(8)]  # as much as its 8192 tokens hold
    waiting = [platform.queue.submit(UNSTREAMED) for _ in range(4)]
    for job in streams:
        await job.streamed(2, 60)
    before = worker.engine_pids()
    [scheduler] = [pid for pid in before if name_of(pid).startswith("sglang::scheduler")]
    began = time.monotonic()
    os.kill(scheduler, signal.SIGKILL)
    for job in streams:
        error = error_of(await job.finished(30))
        assert error["code"] == 502
        assert "the engine's process sglang::scheduler" in error["message"]
        assert events_of(job.stream)[-1] == {"error": error}
    assert time.monotonic() - began < 5, "SGLang itself needs 5 s to notice"
    # Asked while SGLang is down, and before: all of them are answered by the next one.
    greeting = conversation("greeting_without_thinking")
    asked = [platform.queue.submit(each.request()) for each in CONVERSATIONS]
    answer = await platform.answer(greeting.request(), timeout_seconds=START_SECONDS)
    assert answer.output[0]["choices"][0]["message"]["content"] == greeting.content
    for job in [*asked, *waiting]:
        assert (await job.finished(60)).state is JobState.COMPLETED, job.error
    assert [job.answers for job in [*streams, *waiting, *asked]] == [1] * (12 + len(CONVERSATIONS))
    assert not any(map(is_alive, before))
