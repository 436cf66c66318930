"""A worker that is told to stop in its first seconds ends as it would later: with code 0, and without a traceback."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from scripts.worker_process import ANSWER_SECONDS, REPOSITORY, SCRIPTED_ENGINE, Platform, Worker, start_worker
from sglang_engine.posix import is_alive

pytestmark = pytest.mark.anyio

BOTH = [signal.SIGTERM, signal.SIGINT]
# What a worker imports on its way to its first job, in this order; the last four with its settings read.
MOMENTS = [
    "logging",
    "dotenv",
    "serverless",
    "common.settings",
    "asyncio",
    "serverless.invocation",
    "serverless.arguments",
    "argparse",
    "serverless.modes",
    "uvloop",
    "common.web_server",
    "engine",
    "sglang_engine.hub",
    "gateway.deliver",
    "httpx",
    "gateway.settings",
    "serverless.runpod",
    "aiohttp",
    "runpod",
    "runpod.serverless",
]
AT_ONCE = 4

# Sends a signal to its own process when that begins to import a module, so that the moment is always the same.
SIGNALS_ITSELF = """
import os, sys

def signal_at(event, arguments):
    if event == "import" and arguments[0] == os.environ["SIGNALS_AT"]:
        os.kill(os.getpid(), int(os.environ["SIGNALS_WITH"]))

sys.addaudithook(signal_at)
"""


@pytest.fixture(scope="module")
def signals_itself(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PYTHONPATH on which a worker signals itself."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "sitecustomize.py").write_text(SIGNALS_ITSELF)
    return f"{folder}:{SCRIPTED_ENGINE}"


def descendants(pid: int) -> list[int]:
    """All that a process has started, and what that has."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


async def ends_well(worker: Worker) -> None:
    try:
        assert await worker.exit_code() == 0, worker.log
    finally:
        await worker.stop()
    assert "Traceback" not in worker.log
    assert "KeyboardInterrupt" not in worker.log


async def test_signal_at_any_moment_of_the_start_ends_the_worker_with_0(
    platform: Platform, signals_itself: str
) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(moment: str, number: signal.Signals) -> None:
        async with slots:
            variables = {"PYTHONPATH": signals_itself, "SIGNALS_AT": moment, "SIGNALS_WITH": str(number.value)}
            worker = await start_worker(platform, variables)
            await ends_well(worker)
            assert "starting the engine" not in worker.log, moment

    async with asyncio.TaskGroup() as group:
        for place, moment in enumerate(MOMENTS):
            group.create_task(one(moment, BOTH[place % 2]))


@pytest.mark.parametrize("number", BOTH)
async def test_signal_while_the_machine_is_checked_leaves_no_process_behind(
    platform: Platform, number: signal.Signals
) -> None:
    worker = await start_worker(platform, {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": ""})
    async with asyncio.timeout(ANSWER_SECONDS):
        while not (started := descendants(worker.process.pid)):
            await asyncio.sleep(0.001)
    worker.process.send_signal(number)
    await ends_well(worker)
    deadline = time.monotonic() + ANSWER_SECONDS
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not any(map(is_alive, started))


@pytest.mark.parametrize("number", BOTH)
async def test_own_handler_s_program_ends_with_0_while_the_sdk_is_imported(
    platform: Platform, number: signal.Signals, tmp_path: Path, signals_itself: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\nimport serverless\n"
        "serverless.start({'handler': lambda job: 1})\n"
    )
    variables = {"PYTHONPATH": signals_itself, "SIGNALS_AT": "runpod", "SIGNALS_WITH": str(number.value)}
    await ends_well(await start_worker(platform, variables, program=program))
