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


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often what repeats itself does so; `scripts/soak` asks for more."""
    parser.addoption("--kills", type=int, default=3, help="how often the engine is killed under fifty jobs, per moment")
    parser.addoption("--inputs", type=int, default=2000, help="how many random inputs one worker gets")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into a group: the tests of a group run one after the other in one of `scripts/test`'s processes.

    A group is a module; but real engines are in two groups, so that two start at a time and no more. Modules of
    tests/engine that share an engine name the same one.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            module = item.path.relative_to(TESTS).with_suffix("").as_posix()
            item.add_marker(pytest.mark.xdist_group("engine 2" if module.startswith("engine/") else module))
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[int, bool]:
    """Where the test stands: long groups first, and unit tests last, to fill what is left."""
    marker = item.get_closest_marker("xdist_group")
    group = marker.args[0] if marker else ""
    return FIRST.index(group) if group in FIRST else len(FIRST), group.startswith("unit/")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
