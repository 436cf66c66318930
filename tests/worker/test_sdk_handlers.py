"""What handlers raise and return, in every place where they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.waiting import until
from tests.worker.sdk_places import KINDS, PLACES, Place, in_api_mode, on_runpod, on_waverless

pytestmark = pytest.mark.anyio

Places = dict[tuple[str, str], Place]
EVERYWHERE = [(place, kind) for place in PLACES for kind in KINDS]
STREAMING = ("generator", "async_generator")
FAILED = "the worker failed to handle this job"


@pytest.fixture(scope="module")
async def places() -> AsyncIterator[Places]:
    """Every kind of handler in every place: their programs start side by side."""
    async with AsyncExitStack() as stack:
        entered = await asyncio.gather(
            *(stack.enter_async_context(PLACES[where](kind, {"AGGREGATE": "yes"})) for where, kind in EVERYWHERE)
        )
        yield dict(zip(EVERYWHERE, entered, strict=True))


@pytest.mark.parametrize(("where", "kind"), EVERYWHERE)
async def test_base_exception_fails_its_job_and_no_other(places: Places, where: str, kind: str) -> None:
    place = places[where, kind]
    raising = [{"raise": "exit", "code": 3}, {"raise": "interrupt"}, {"raise": "own", "text": "from the user"}]
    asked = [*raising, {"raise": "error", "text": "from the user"}]
    for job_input in asked if where != "local" else asked[:2]:
        report = await place.answer(job_input)
        assert (report["status"], FAILED in report["error"]) == ("FAILED", True), job_input
    after = await place.answer({"return": "as before"})
    assert (after["status"], "as before" in str(after["output"])) == ("COMPLETED", True)
    assert "from the user" not in place.log or where == "local"


@pytest.mark.parametrize(("where", "kind"), EVERYWHERE)
async def test_empty_error_is_none_and_the_key_goes(places: Places, where: str, kind: str) -> None:
    report = await places[where, kind].answer({"return": {"n": 1, "error": None}})
    expected: Any = [{"n": 1}] if kind in STREAMING and where != "waverless" else {"n": 1}
    assert (report["status"], report["output"]) == ("COMPLETED", expected)
    assert "error" not in report


@pytest.mark.parametrize(("where", "kind"), [case for case in EVERYWHERE if case[0] in ("runpod", "waverless")])
async def test_result_is_of_a_stream_for_generators_only(places: Places, where: str, kind: str) -> None:
    report = await places[where, kind].answer({"return": 1})
    assert report["posts"][-1][0] == f"job-done isStream={str(kind in STREAMING).lower()}"


@pytest.mark.parametrize("where", PLACES)
async def test_generator_has_one_thread(places: Places, where: str) -> None:
    report = await places[where, "generator"].answer({"yield": ["a", "b"], "threads": True})
    output = report["output"]["output"] if where == "waverless" else report["output"]
    assert output == ["a", "b", 1]


@pytest.mark.parametrize("where", ["runpod", "waverless", "api"])
async def test_exit_in_a_task_that_a_handler_started_fails_its_job_alone(places: Places, where: str) -> None:
    place = places[where, "coroutine"]
    slow = asyncio.create_task(place.answer({"return": "slow", "wait_seconds": 1}))
    report = await place.answer({"raise": "exit", "code": 3, "in_task": True})
    assert (report["status"], FAILED in report["error"]) == ("FAILED", True)
    assert (await slow)["status"] == "COMPLETED"
    await until(lambda: "a task of a handler raised SystemExit; the worker goes on" in place.log)


async def test_block_of_the_event_loop_is_named() -> None:
    async with on_runpod("coroutine") as place:
        await place.answer({"block_seconds": 2})
        await until(lambda: "has blocked the event loop for" in place.log)
        assert "blocks the event loop, in coroutine (sdk_program.py:" in place.log


async def test_handler_s_lines_are_json_with_the_job_s_id_on_a_platform() -> None:
    async with on_waverless("function", {"WAVERLESS_LOG_LEVEL": "warning"}) as place:
        report = await place.answer({"log": "a line of its own"})
        await until(lambda: "a line of its own" in place.log)
        await until(lambda: place.log.count("a line of its own") == 2)
        lines = [line for line in place.lines() if line["message"] == "a line of its own"]
    assert [(line["level"], line["requestId"], line["source"]) for line in lines] == [
        (level, report["id"], "handler") for level in ("WARN", "ERROR")
    ]


async def test_generator_without_aggregate_shows_nothing_and_the_log_says_why() -> None:
    async with in_api_mode("generator", {"AGGREGATE": "no"}) as place:
        report = await place.answer({"yield": ["a"]})
        assert (report["status"], bool(report.get("output"))) == ("COMPLETED", False)
        await until(lambda: "return_aggregate_stream" in place.log)
        assert place.log.count("return_aggregate_stream") == 1
