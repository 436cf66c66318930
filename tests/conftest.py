"""Shared by all tests: asynchronous ones run on asyncio, and property tests are not timed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail, and no examples are kept between runs.
settings.register_profile("untimed", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
