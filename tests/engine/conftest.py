"""The real SGLang on a CPU, serving the tiny GLM: started once, through the whole worker, for all tests here."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from embedded import cache
from embedded.environment import MODEL_FOLDER, engine_environment
from processes import is_alive
from tests.worker.harness import Platform, Worker, running_platform, running_worker


@pytest.fixture(scope="package")
async def platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


@pytest.fixture(scope="package")
async def worker(platform: Platform) -> AsyncIterator[Worker]:
    assert cache.is_made(MODEL_FOLDER), "the tiny GLM is missing; `python -m embedded` makes it"
    async with running_worker(platform, engine_environment({}), start_seconds=180) as worker:
        yield worker
        pids = worker.engine_pids()
        assert len(pids) >= 3, "SGLang is a server, a scheduler and a detokenizer"
        began = time.monotonic()
        assert await worker.stop() == 0
        assert time.monotonic() - began < 5, "nothing was in flight"
        assert not any(map(is_alive, pids))
