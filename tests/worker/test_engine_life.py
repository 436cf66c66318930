"""What the engine can do to the worker: leave processes behind, hang behind a living server, answer endlessly."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from common.masking import Mask
from engine import plan
from local_runpod import JobState
from scripts.worker_process import (
    REPOSITORY,
    SCRIPTED_ENGINE,
    Platform,
    Worker,
    free_port,
    running_platform,
    running_worker,
)
from sglang_engine.errors import EngineError
from sglang_engine.posix import is_alive
from sglang_engine.process import Engine
from sglang_engine.settings import EngineSettings
from sglang_engine.supervisor import State, Supervisor
from sglang_engine.suspects import Ticket
from tests.answers import error_of, events_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
STUCK_AT_FIRST = {"messages": HELLO, "script": {"first": {"pause": 60}}}


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(20):
        while any(map(is_alive, pids)):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["told to stop", "killed", "its engine killed"])
async def test_no_process_of_the_engine_outlives_it_or_the_worker(platform: Platform, how: str) -> None:
    async with running_worker(platform, engine=[{"strays": True, "child": True, "scheduler": True}, {}]) as worker:
        strays = (await worker.ask_engine())["strays"]
        engine = worker.engine_pid()
        assert len(strays) == 4
        assert engine is not None
        processes = [*strays, *worker.engine_pids()]
        assert all(map(is_alive, processes))
        if how == "told to stop":
            assert await worker.stop() == 0
        elif how == "killed":
            worker.process.kill()
        else:
            os.kill(engine, signal.SIGKILL)
        await until_gone(processes)
        if how == "its engine killed":
            assert (await platform.answer({"messages": HELLO})).state is JobState.COMPLETED


async def test_hung_scheduler_behind_a_living_server_is_noticed(platform: Platform) -> None:
    environment = {"REQUEST_TIMEOUT_SECONDS": "1"}
    async with running_worker(platform, environment, engine=[{"scheduler_hangs": 0.5}, {}]) as worker:
        job = await platform.answer(STUCK_AT_FIRST)
        assert job.state is JobState.COMPLETED, "sent again to the next engine"
        reason = "the engine sent nothing for 1 s (REQUEST_TIMEOUT_SECONDS) and answers on /health"
        await until(lambda: reason in worker.log)
        await until(lambda: "but its scheduler does not on /health_generate" in worker.log)
        assert len(worker.engine_starts()) == 2


@pytest.fixture(scope="module")
async def limited() -> AsyncIterator[tuple[Platform, Worker]]:
    environment = {"MAX_RESPONSE_BYTES": "100000", "REQUEST_TIMEOUT_SECONDS": "2"}
    async with running_platform() as platform, running_worker(platform, environment) as worker:
        yield platform, worker


@pytest.mark.parametrize("status", [200, 500])
async def test_unstreamed_answer_beyond_the_limit_is_refused(limited: tuple[Platform, Worker], status: int) -> None:
    platform, _ = limited
    script = {"body": '"' + "x" * 200_000 + '"', "status": status}
    error = error_of(await platform.answer({"messages": HELLO, "script": script}))
    assert (error["code"], error["message"]) == (
        502,
        "the engine's answer is larger than 100000 bytes (MAX_RESPONSE_BYTES)",
    )
    within = await platform.answer({"messages": HELLO, "script": {"answer": "x" * 90_000}})
    assert within.state is JobState.COMPLETED


async def test_unstreamed_answer_that_drips_ends(limited: tuple[Platform, Worker]) -> None:
    platform, worker = limited
    error = error_of(await platform.answer({"messages": HELLO, "script": {"drip": 0.2, "answer": "x" * 1000}}))
    assert error["code"] == 504
    assert error["message"].endswith("did not complete it within 2.0 s (REQUEST_TIMEOUT_SECONDS)")
    assert len(worker.engine_starts()) == 1
    requests = await worker.engine_requests()
    assert requests[-1]["end"] == "aborted"


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
sys.path.insert(0, {folder!r})
runpy.run_path({program!r}, run_name="__main__")
"""


async def test_jobs_wait_while_file_descriptors_are_lacking(platform: Platform, tmp_path: Path) -> None:
    program = tmp_path / "limited.py"
    program.write_text(LIMITED.format(folder=str(REPOSITORY), program=str(REPOSITORY / "handler.py")))
    async with running_worker(platform, program=program) as worker:
        script = {"events": 4, "pause": 0.2}
        jobs = [platform.queue.submit({"messages": HELLO, "stream": True, "script": script}) for _ in range(300)]
        for job in jobs:
            assert (await job.finished(60)).state is JobState.COMPLETED, job.error
            assert len(events_of(job.stream)) == 5
        assert worker.process.returncode is None


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine in this process, the scripted one."""
    monkeypatch.syspath_prepend(SCRIPTED_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTED_ENGINE))
    monkeypatch.setenv("SCRIPTED_ENGINE", '{"scheduler": true}')
    return Engine(plan({"PORT": str(free_port())}), Mask())


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EMFILE])
@pytest.mark.parametrize("which", ["the engine", "its scheduler"])
async def test_death_is_noticed_without_pidfd(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: int, which: str
) -> None:
    monkeypatch.setattr(os, "pidfd_open", failing(OSError(error, os.strerror(error))))
    async with Supervisor(engine, EngineSettings.from_environ({})) as supervisor:
        leader, scheduler = supervisor.engine_pids()
        os.kill(leader if which == "the engine" else scheduler, signal.SIGKILL)
        await asyncio.wait_for(supervisor.wait_for_loss(0), 10)
        await asyncio.wait_for(supervisor.wait_until_ready(), 20)
        assert supervisor.lives == 1


@pytest.mark.parametrize("moment", ["while it runs", "at its end"])
async def test_broken_supervision_gives_the_engine_up_with_the_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    secret = KeyError("a-secret")
    async with Supervisor(engine, EngineSettings.from_environ({})) as supervisor:
        async with supervisor.exchange(Ticket()) as exchange:
            monkeypatch.setattr(engine, "diagnose", failing(secret))
            if moment == "while it runs":
                supervisor._supervising.cancel()  # type: ignore[union-attr]
            else:
                os.kill(supervisor.engine_pids()[0], signal.SIGKILL)
            reason = await asyncio.wait_for(supervisor.wait_for_failure(), 10)
            assert reason.startswith("watching over the engine ")
            assert ("KeyError" in reason) == (moment == "at its end")
            assert "a-secret" not in reason
            assert supervisor.state is State.FAILED
            assert await asyncio.wait_for(exchange.reason_of_loss(), 10) == reason
        pids = supervisor.engine_pids()
    assert not any(map(is_alive, pids))


async def test_engine_that_cannot_be_started_for_lack_of_descriptors_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pipe", failing(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(EngineError, match="cannot be started: Too many open files"):
        async with Supervisor(engine, EngineSettings.from_environ({})):
            pass
