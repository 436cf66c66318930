"""A log that nobody reads, or nobody can read, must not cost a job."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_runpod import JobState
from scripts.worker_process import ANSWER_SECONDS, REPOSITORY, Platform, Worker, start_worker

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
PIPE_BYTES = 64 * 1024
# As much as a variable of the environment can hold, and more than a pipe.
CHATTER = "the engine says a word, and another, and one more\n" * 2200
assert len(CHATTER) > PIPE_BYTES


@pytest.fixture
def unread() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    yield write_end
    os.close(write_end)
    os.close(read_end)


async def answers_and_stops(platform: Platform, worker: Worker) -> None:
    try:
        first = await platform.answer({"messages": HELLO})
        assert first.state is JobState.COMPLETED
        jobs = [platform.queue.submit({"messages": HELLO, "stream": True}) for _ in range(300)]
        async with asyncio.timeout(ANSWER_SECONDS):
            for job in jobs:
                assert (await job.finished(ANSWER_SECONDS)).state is JobState.COMPLETED
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code() == 0
    finally:
        if worker.process.returncode is None:
            worker.process.kill()
            await worker.process.wait()


async def test_worker_answers_jobs_and_stops_while_nobody_reads_its_log(platform: Platform, unread: int) -> None:
    # At DEBUG the SDK's heartbeat prints as well; it must not stand still either.
    more = {"RUNPOD_LOG_LEVEL": "DEBUG", "RUNPOD_PING_INTERVAL": "1000"}
    worker = await start_worker(platform, more, engine={"says": CHATTER}, stdout=unread, stderr=unread)
    await answers_and_stops(platform, worker)


async def test_worker_answers_jobs_and_stops_when_its_log_s_reader_is_gone(platform: Platform) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    worker = await start_worker(platform, engine={"says": CHATTER}, stdout=write_end, stderr=write_end)
    os.close(write_end)
    await answers_and_stops(platform, worker)


async def test_worker_without_standard_streams_answers_jobs_and_stops(platform: Platform, tmp_path: Path) -> None:
    program = tmp_path / "closes_its_streams.py"
    command = [sys.executable, str(REPOSITORY / "handler.py")]
    program.write_text(
        f"import os\nfor stream in (0, 1, 2):\n    os.close(stream)\nos.execv({command[0]!r}, {command!r})\n"
    )
    worker = await start_worker(platform, engine={"says": CHATTER}, program=program)
    await answers_and_stops(platform, worker)


async def test_reason_of_a_failure_is_the_last_line_that_is_read(platform: Platform) -> None:
    read_end, write_end = os.pipe()
    engine = {"says": CHATTER + "RuntimeError: the last words\n", "exit_code": 7}
    worker = await start_worker(platform, engine=engine, stdout=write_end, stderr=write_end)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as reader:
        log = await asyncio.to_thread(reader.read)
    assert await worker.exit_code() == 1
    assert "exited with code 7" in log.splitlines()[-1]
    assert log.count("the engine says a word") == CHATTER.count("\n")
    assert log.index("the engine was started") < log.index("the engine says") < log.index("the last words")
