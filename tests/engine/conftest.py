"""The real SGLang on a CPU, serving the tiny GLM: started twice for all tests here, once in each mode of the worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from embedded import cache
from embedded.environment import MODEL_FOLDER, engine_environment
from scripts.worker_process import (
    Platform,
    Worker,
    free_port,
    running_platform,
    running_worker,
    start_worker,
    until_api_is_ready,
)
from sglang_engine.posix import is_alive
from tests.waiting import START_SECONDS, until


@pytest.fixture(scope="package")
async def platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


@pytest.fixture(scope="package")
async def worker(platform: Platform) -> AsyncIterator[Worker]:
    assert cache.is_made(MODEL_FOLDER), "the tiny GLM is missing; `python -m embedded` makes it"
    async with running_worker(platform, engine_environment({}), start_seconds=START_SECONDS) as worker:
        yield worker
        pids = worker.engine_pids()
        assert len(pids) >= 3, "SGLang is a server, a scheduler and a detokenizer"
        began = time.monotonic()
        assert await worker.stop() == 0
        assert time.monotonic() - began < 10, "nothing was in flight"  # 5 s, where tests/worker times it
        assert not any(map(is_alive, pids))


@dataclass(frozen=True)
class Api:
    """API mode, running."""

    worker: Worker
    url: str


@pytest.fixture(scope="package")
async def api() -> AsyncIterator[Api]:
    """`handler.py --rp_serve_api` with the tiny GLM, ready for jobs."""
    port = free_port()
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(None, engine_environment({}), arguments=flags)
    url = f"http://127.0.0.1:{port}"
    try:
        await until_api_is_ready(url, worker, START_SECONDS)
        yield Api(worker, url)
        processes = [*worker.engine_pids(), *worker.children()]
        assert len(processes) > 4
        worker.process.kill()
        await until(lambda: not any(map(is_alive, processes)), 5)  # a killed worker leaves no process
    finally:
        await worker.stop()
