"""Shared by all tests: asynchronous ones run on asyncio, property tests have no deadline; which run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

# A busy machine is not a reason to fail, and no examples are kept between runs.
settings.register_profile("untimed", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Modules that share the engine of the fixture `worker`, or start some beside it. Others with a real engine, API mode
# among them, are a second group: two of them start at a time, and no more.
WITH_THE_WORKER = ("answers", "crash", "errors", "hung_scheduler", "serving_alone", "token_ids")
# What `scripts/test` begins with, as what comes last runs alone: real engines, then the longest modules.
FIRST = ("engine 1", "engine 2", "worker/supervision", "worker/stopping", "worker/own_handlers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often what repeats itself does so; `scripts/soak` asks for more."""
    parser.addoption("--kills", type=int, default=3, help="how often the engine is killed under fifty jobs, per moment")
    parser.addoption("--inputs", type=int, default=2000, help="how many random inputs one worker gets")


def group_of(node_id: str) -> str:
    """The tests of a group run one after the other in one of `scripts/test`'s processes. Most modules are one."""
    layer, module = Path(node_id.partition("::")[0]).with_suffix("").parts[-2:]
    module = module.removeprefix("test_")
    if layer == "engine":
        return "engine 1" if module in WITH_THE_WORKER else "engine 2"
    return f"{layer}/{module}"


def place_of(item: pytest.Item) -> tuple[int, bool]:
    """A test's place in the order: long groups first, and unit tests last, to fill what is left."""
    group = group_of(item.nodeid)
    return FIRST.index(group) if group in FIRST else len(FIRST), group.startswith(("unit/", "parts/"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's own groups (3.8.0) are lost on pytest 9.2, without a word."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
