"""One platform and one worker for all tests of a module: a start costs a second or two."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from scripts.worker_process import Platform, Worker, running_platform, running_worker


@pytest.fixture(scope="module")
async def platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


@pytest.fixture(scope="module")
async def worker(platform: Platform) -> AsyncIterator[Worker]:
    async with running_worker(platform) as worker:
        yield worker
