"""The engine's process is there before the worker's own imports and the fitness checks, and waits for these."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import pytest

from scripts.worker_process import (
    SCRIPTED_ENGINE,
    Worker,
    children_of,
    clean_environment,
    command_line,
    running_platform,
    running_worker,
    start_worker,
)
from sglang_engine.posix import is_alive
from tests.waiting import until

pytestmark = pytest.mark.anyio


def early_engines(worker: Worker) -> list[int]:
    """The engine's processes that wait for the worker."""
    guarded = (pid for guard in worker.children() for pid in children_of(guard))
    return [pid for pid in guarded if any(word.endswith("prelude.py") for word in command_line(pid))]


SAYS = "Load weight begin. avail mem=1 GB\nLoad weight end. elapsed=0.3 s\n"


async def test_engine_is_launched_before_the_sdk_is_imported_and_answers_jobs() -> None:
    script = {"says": SAYS, "ready_after": 0.5}
    async with running_platform() as platform, running_worker(platform, engine=script) as worker:
        log = worker.log
        assert re.search(r"the start went to: worker \d+\.\d s, imports \d+\.\d s, warm-up \d+\.\d s", log)
        assert "the engine was started" in log
        assert log.count("goes on now") == 1
        assert worker.engine_pid() is not None
        assert len(worker.engine_starts()) == 1


async def test_queue_is_the_mode_whether_it_is_named_or_a_test_input_lies_about(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text('{"input": {"text": "x"}}')
    async with (
        running_platform() as platform,
        running_worker(platform, {"MODE": "Queue"}, folder=tmp_path) as worker,
    ):
        await until(lambda: worker.log.count("goes on now") == 1)


async def test_engine_that_waits_ends_with_its_worker() -> None:
    async with running_platform() as platform:
        worker = await start_worker(platform)
        try:
            await until(lambda: early_engines(worker))
            [engine] = early_engines(worker)
            worker.process.kill()
            await worker.process.wait()
            await until(lambda: not is_alive(engine))
        finally:
            await worker.stop()


async def test_wrong_setting_starts_no_engine() -> None:
    async with running_platform() as platform:
        worker = await start_worker(platform, {"MAX_N": "many", "FAILED_START_SECONDS": "0"})
        assert await worker.exit_code() == 2
        assert "MAX_N='many'" in worker.log
        assert not worker.starts_path.exists()


async def test_prelude_waits_for_its_gate_and_runs_the_module_as_python_does(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(
        "import sys\nprint(__name__, __spec__.name, sys.argv, sys.modules['__main__'].__name__, flush=True)\n"
    )
    prelude = Path(__file__).parents[2] / "sglang_engine" / "prelude.py"
    gate, opener = os.pipe()
    with os.fdopen(gate, "rb") as gate_end, os.fdopen(opener, "wb", buffering=0) as opening:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(prelude), str(gate_end.fileno()), "shown", "--port", "1"),
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": str(SCRIPTED_ENGINE)},
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[gate_end.fileno()],
        )
        reading = asyncio.create_task(process.communicate())
        done, _ = await asyncio.wait({reading}, timeout=0.5)
        assert not done
        opening.write(b"!")
        said, _ = await reading
    assert said.decode() == "__main__ shown ['" + str(tmp_path / "shown.py") + "', '--port', '1'] __main__\n"


async def test_engine_is_launched_soon_after_the_worker() -> None:
    async with running_platform() as platform:
        began = time.monotonic()
        worker = await start_worker(platform)
        try:
            await until(lambda: early_engines(worker))
            assert time.monotonic() - began < 3.0  # 0.3 s on an idle machine: scripts/bench rest
            assert "RunPod's SDK" not in worker.log
        finally:
            await worker.stop()
