"""Shared by all tests: asynchronous ones run on asyncio, property tests are not timed, and who runs beside whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail, and no examples are kept between runs.
settings.register_profile("untimed", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

TESTS = Path(__file__).parent
# What `scripts/test` begins with, as what comes last runs alone: real engines, then the longest modules.
FIRST = ("engine 1", "engine 2", "worker/test_supervision", "worker/test_stopping", "worker/test_own_handlers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into a group: the tests of a group run one after the other in one of `scripts/test`'s processes.

    A group is a module. Tests with a real engine name theirs themselves, so that few of those run at a time.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_module(item)))
    items.sort(key=_place)


def _module(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).with_suffix("").as_posix()


def _place(item: pytest.Item) -> tuple[int, bool]:
    """Where the test stands: long groups first, and unit tests last, to fill what is left."""
    marker = item.get_closest_marker("xdist_group")
    group = marker.args[0] if marker else ""
    return FIRST.index(group) if group in FIRST else len(FIRST), group.startswith("unit/")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
