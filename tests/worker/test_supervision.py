"""What the worker does about an engine that dies, does not come back, or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.masking import Mask
from engine import plan
from local_runpod import JobState
from scripts.worker_process import SCRIPTED_ENGINE, Platform, Worker, free_port, running_worker
from sglang_engine.posix import is_alive, name_of
from sglang_engine.process import Engine
from sglang_engine.settings import EngineSettings
from sglang_engine.supervisor import State, Supervisor
from tests.answers import error_of, events_of
from tests.waiting import ENOUGH_SECONDS, until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
STUCK_AT_FIRST = {"messages": HELLO, "script": {"first": {"pause": 60}}}
ENDLESS = {"messages": HELLO, "stream": True, "script": {"events": 10_000, "pause": 0.05}}


def kill_engine(worker: Worker) -> None:
    pid = worker.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def until_asked(worker: Worker, count: int) -> None:
    """Until the engine has been asked this many things since it started; a worker's first job is one of them."""
    async with asyncio.timeout(ENOUGH_SECONDS):
        while len(await worker.engine_requests()) < count:
            await asyncio.sleep(0.02)


async def until_started(worker: Worker, count: int) -> None:
    await until(lambda: len(worker.engine_starts()) >= count)


@pytest.fixture
async def supervisor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """A supervisor in this process, over the scripted engine."""
    monkeypatch.syspath_prepend(SCRIPTED_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTED_ENGINE))
    monkeypatch.setenv("SCRIPTED_ENGINE", '{"scheduler": true}')
    launch = plan({"PORT": str(free_port())})
    environ = {"ENGINE_MAX_RESTARTS": "100", "ENGINE_RESTART_WINDOW_SECONDS": "0.01"}
    async with Supervisor(Engine(launch, Mask()), EngineSettings.from_environ(environ)) as supervisor:
        yield supervisor


@pytest.mark.parametrize("which", ["the engine", "its scheduler"])
async def test_death_is_noticed_within_100_ms(supervisor: Supervisor, which: str) -> None:
    noticed_after = []
    for life in range(5):
        await supervisor.wait_until_ready()
        leader, scheduler = supervisor.engine_pids()
        began = time.monotonic()
        os.kill(leader if which == "the engine" else scheduler, signal.SIGKILL)
        await supervisor.wait_for_loss(life)
        noticed_after.append(time.monotonic() - began)
        assert supervisor.state is State.RESTARTING
    await supervisor.wait_until_ready()  # a start that is broken off leaves a process behind that nobody waits for
    assert statistics.median(noticed_after) < 0.1, noticed_after


async def test_jobs_that_have_sent_nothing_are_sent_again_after_the_restart(platform: Platform) -> None:
    async with running_worker(platform, engine=[{}, {"ready_after": 1}]) as worker:
        jobs = [platform.queue.submit({**STUCK_AT_FIRST, "stream": stream}) for stream in (False, True)]
        await until_asked(worker, 3)
        kill_engine(worker)
        for job in jobs:
            assert (await job.finished(20)).state is JobState.COMPLETED, job.error
        assert events_of(jobs[1].stream)[-1] == "[DONE]"
        assert len(await worker.engine_requests()) == 2
        assert [job.answers for job in jobs] == [1, 1]


async def test_jobs_that_have_sent_something_end_with_an_error_event_and_fail(platform: Platform) -> None:
    async with running_worker(platform) as worker:
        job = platform.queue.submit(ENDLESS)
        await job.streamed(2, 10)
        kill_engine(worker)
        error = error_of(await job.finished(10))
        assert error["code"] == 502
        assert error["message"].startswith("the answer was cut off: the engine was killed by SIGKILL (usual cause: ")
        assert events_of(job.stream)[-1] == {"error": error}
        assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


async def test_job_is_sent_again_only_once(platform: Platform) -> None:
    async with running_worker(platform) as worker:
        job = await platform.answer({"messages": HELLO, "script": {"then": "crash", "code": 9}})
        error = error_of(job)
        assert error["code"] == 503
        assert error["message"].startswith(
            "the engine died under this job, and again when it was sent once more: the engine exited with code 9"
        )
        assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED
        assert len(worker.engine_starts()) == 3


async def test_no_job_is_taken_while_the_engine_is_down_and_all_are_answered_after(
    platform: Platform, tmp_path: Path
) -> None:
    async with running_worker(platform, engine=[{}, {"ready_when": str(tmp_path / "go")}]) as worker:
        kill_engine(worker)
        await until_started(worker, 2)
        jobs = []
        for _ in range(5):
            jobs.append(platform.queue.submit({"messages": HELLO}))
            await asyncio.sleep(0.1)
        # The poll that was in flight when the engine died may bring one; that one waits.
        assert [job.state for job in jobs[1:]] == [JobState.IN_QUEUE] * 4
        (tmp_path / "go").touch()
        for job in jobs:
            assert (await job.finished(20)).state is JobState.COMPLETED


async def test_dead_scheduler_is_a_dead_engine(platform: Platform) -> None:
    async with running_worker(platform, engine={"scheduler": True, "child": True}) as worker:
        job = platform.queue.submit(STUCK_AT_FIRST)
        await until_asked(worker, 2)
        before = worker.engine_pids()
        [scheduler] = [pid for pid in before if name_of(pid).startswith("sglang::scheduler")]
        os.kill(scheduler, signal.SIGKILL)
        assert (await job.finished(20)).state is JobState.COMPLETED
        assert not any(map(is_alive, before))
        await until(lambda: "the engine's process sglang::scheduler_TP0 was killed by SIGKILL" in worker.log)


async def test_engine_that_dies_too_often_fails_the_jobs_and_ends_the_worker(platform: Platform) -> None:
    async with running_worker(platform, {"ENGINE_MAX_RESTARTS": "1"}, engine=[{}, {"ready_after": 1}]) as worker:
        kill_engine(worker)
        await until_started(worker, 2)
        waiting = [platform.queue.submit({"messages": HELLO, "script": {"pause": 60}}) for _ in range(3)]
        streaming = platform.queue.submit(ENDLESS)
        await streaming.streamed(1, 20)
        began = time.monotonic()
        kill_engine(worker)
        assert await worker.exit_code() == 1
        assert time.monotonic() - began < 10
        reason = "it is not started again, after 1 restarts within 600 s (ENGINE_MAX_RESTARTS)"
        for job in waiting:
            error = error_of(job)
            assert (error["code"], job.answers) == (503, 1)
            assert "the engine was killed by SIGKILL (usual cause: " in error["message"]
            assert error["message"].endswith(reason)
        assert error_of(streaming)["code"] == 502
        assert reason in worker.log


async def test_restarts_never_when_told_so(platform: Platform) -> None:
    async with running_worker(platform, {"ENGINE_MAX_RESTARTS": "0"}) as worker:
        job = platform.queue.submit(STUCK_AT_FIRST)
        await until_asked(worker, 2)
        kill_engine(worker)
        assert await worker.exit_code(10) == 1
        assert "after 0 restarts" in error_of(job)["message"]
        assert len(worker.engine_starts()) == 1


OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
FAILING_RESTARTS: dict[str, tuple[dict[str, Any], str]] = {
    "exits": (
        {"exit_code": 1, "says": OUT_OF_MEMORY},
        "while starting, the engine exited with code 1 (cause: CUDA out of memory; lower MEM_FRACTION_STATIC",
    ),
    "never gets ready": ({"ready_after": 600}, "the engine was not ready after 4 s (STARTUP_TIMEOUT_SECONDS)"),
}


@pytest.mark.parametrize("case", FAILING_RESTARTS)
async def test_restart_that_fails_fails_the_jobs_and_ends_the_worker(platform: Platform, case: str) -> None:
    second, reason = FAILING_RESTARTS[case]
    async with running_worker(platform, {"STARTUP_TIMEOUT_SECONDS": "4"}, engine=[{}, second]) as worker:
        job = platform.queue.submit(STUCK_AT_FIRST)
        await until_asked(worker, 2)
        kill_engine(worker)
        assert await worker.exit_code(15) == 1
        message = error_of(job)["message"]
        assert message.startswith("the engine was killed by SIGKILL")
        assert f"starting it again failed: {reason}" in message
        assert OUT_OF_MEMORY.strip() not in message, "the engine's own words stay in the log"
        assert len(worker.engine_starts()) == 2


async def test_pauses_before_restarts_grow(platform: Platform) -> None:
    async with running_worker(platform) as worker:
        for life in range(1, 4):
            kill_engine(worker)
            await until_started(worker, life + 1)
            assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED
        first, second, third = (later - earlier for earlier, later in pairwise(worker.engine_starts()))
        del first  # has the first start in it
        assert second > 1.0
        assert third > 2.0
        kill_engine(worker)
        assert await worker.exit_code(10) == 1


async def test_restarts_out_of_the_window_do_not_count(platform: Platform) -> None:
    environment = {"ENGINE_MAX_RESTARTS": "1", "ENGINE_RESTART_WINDOW_SECONDS": "0.3"}
    async with running_worker(platform, environment) as worker:
        for life in range(1, 5):
            kill_engine(worker)
            await until_started(worker, life + 1)
            assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


async def test_wedged_engine_is_killed_and_restarted(platform: Platform) -> None:
    async with running_worker(platform, {"REQUEST_TIMEOUT_SECONDS": "1.5"}) as worker:
        engine = worker.engine_pid()
        assert engine is not None
        streaming = platform.queue.submit(ENDLESS)
        await streaming.streamed(1, 10)
        os.kill(engine, signal.SIGSTOP)
        waiting = [platform.queue.submit({"messages": HELLO}) for _ in range(3)]
        error = error_of(await streaming.finished(20))
        assert "the engine sent nothing for 1.5 s (REQUEST_TIMEOUT_SECONDS) and does not answer" in error["message"]
        for job in waiting:
            assert (await job.finished(20)).state is JobState.COMPLETED
        assert not is_alive(engine)
        assert len(worker.engine_starts()) == 2


async def test_silent_request_among_busy_ones_is_not_probed(platform: Platform) -> None:
    async with running_worker(platform, {"REQUEST_TIMEOUT_SECONDS": "1"}) as worker:
        before = (await worker.ask_engine())["probes"]
        busy = platform.queue.submit(ENDLESS)
        await busy.streamed(1, 10)
        silent = await platform.answer({"messages": HELLO, "script": {"pause": 60}})
        assert error_of(silent)["code"] == 504
        assert (await worker.ask_engine())["probes"] == before
        platform.queue.cancel(busy)
        # Alone in its silence, but /health answers: the request has failed, the engine has not.
        assert error_of(await platform.answer({"messages": HELLO, "script": {"pause": 60}}))["code"] == 504
        assert (await worker.ask_engine())["probes"] == before + 1
        assert len(worker.engine_starts()) == 1


async def test_jobs_that_wait_for_the_engine_are_limited(platform: Platform) -> None:
    async with running_worker(platform, {"MAX_WAITING_JOBS": "1"}, engine=[{}, {"ready_after": 2}]) as worker:
        jobs = [platform.queue.submit(STUCK_AT_FIRST) for _ in range(3)]
        await until_asked(worker, 4)
        kill_engine(worker)
        for job in jobs:
            await job.finished(20)
        assert sorted(job.state for job in jobs) == [JobState.COMPLETED, JobState.FAILED, JobState.FAILED]
        for job in jobs:
            if job.state is JobState.FAILED:
                error = error_of(job)
                assert error["code"] == 503
                assert (
                    error["message"]
                    == "the engine is restarting, and 1 jobs are already waiting for it (MAX_WAITING_JOBS)"
                )


async def test_job_cancelled_while_it_waits_for_the_engine_is_not_sent_again(
    platform: Platform, tmp_path: Path
) -> None:
    async with running_worker(platform, engine=[{}, {"ready_when": str(tmp_path / "go")}]) as worker:
        cancelled, kept = (platform.queue.submit(STUCK_AT_FIRST) for _ in range(2))
        await until_asked(worker, 3)
        kill_engine(worker)
        await until_started(worker, 2)
        platform.queue.cancel(cancelled)
        await until(lambda: f"job {cancelled.id}: cancelled" in worker.log)
        (tmp_path / "go").touch()
        assert (await kept.finished(20)).state is JobState.COMPLETED
        assert len(await worker.engine_requests()) == 1
        assert cancelled.answers == 0


async def test_worker_told_to_stop_during_a_restart_still_answers_what_it_has(
    platform: Platform, tmp_path: Path
) -> None:
    async with running_worker(platform, engine=[{}, {"ready_when": str(tmp_path / "go")}]) as worker:
        job = platform.queue.submit(STUCK_AT_FIRST)
        await until_asked(worker, 2)
        kill_engine(worker)
        await until_started(worker, 2)
        worker.process.send_signal(signal.SIGTERM)
        await until(lambda: "told to stop" in worker.log)
        (tmp_path / "go").touch()
        assert await worker.exit_code() == 0
        assert job.state is JobState.COMPLETED


async def test_killed_worker_leaves_no_process_behind(platform: Platform) -> None:
    async with running_worker(platform, engine={"child": True, "scheduler": True, "ignore_sigterm": True}) as worker:
        processes = [*worker.children(), *worker.engine_pids()]
        assert len(worker.engine_pids()) == 3
        worker.process.kill()
        async with asyncio.timeout(5):
            while any(map(is_alive, processes)):
                await asyncio.sleep(0.05)
