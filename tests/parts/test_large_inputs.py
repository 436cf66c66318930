"""Large inputs: split, read, checked and encoded in a process of their own, in order, while the loop goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from common.errors import JobError
from common.helper_process import HelperError, HelperProcess
from common.large_json import LARGE_BYTES, LargeJson
from gateway.errors import InvalidInputError, RequestTooLargeError
from gateway.intake import Intake, path_asked_for
from gateway.settings import GatewaySettings
from serverless.tolerant_json import sift

pytestmark = pytest.mark.anyio

LARGE = "x" * LARGE_BYTES
CHAT = {"messages": [{"role": "user", "content": LARGE}], "stream": True}


@pytest.fixture(scope="module")
async def helper() -> AsyncIterator[HelperProcess]:
    async with HelperProcess() as helper:
        yield helper


def echo(data: bytes, *, times: int) -> Iterator[Any]:
    """A task."""
    for number in range(times):
        yield number, data


def pid_and_end(data: bytes, *, kill: bool) -> Iterator[int]:
    """A task that may kill the process it runs in."""
    yield os.getpid()
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(data: bytes) -> Iterator[None]:
    """A task that raises."""
    raise InvalidInputError("no", param="text")
    yield


async def test_results_come_in_order_and_data_in_pieces_is_joined(helper: HelperProcess) -> None:
    pieces = [b"a" * 70_000, b"", b"b" * 70_000]
    results = [result async for result in helper.results(echo, pieces, times=3)]
    assert results == [(number, b"".join(pieces)) for number in range(3)]


async def test_tasks_wait_for_their_turn(helper: HelperProcess) -> None:
    data = [str(number).encode() for number in range(20)]
    results = await asyncio.gather(*(helper.run(echo, each, times=1) for each in data))
    assert [result for _, result in results] == data


async def test_error_of_a_task_is_raised_as_it_is(helper: HelperProcess) -> None:
    with pytest.raises(InvalidInputError) as raised:
        await helper.run(refuse, b"")
    assert (raised.value.code, raised.value.message, raised.value.param) == (400, "no", "text")


async def test_helper_that_is_killed_fails_its_task_alone(helper: HelperProcess) -> None:
    with pytest.raises(HelperError):
        await helper.run(pid_and_end, b"", kill=True)
    assert await helper.run(pid_and_end, b"", kill=False)


async def test_task_that_is_left_does_not_go_on_with_the_next(helper: HelperProcess) -> None:
    leaving = asyncio.create_task(helper.run(echo, b"x" * 1_000_000, times=1000))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await helper.run(echo, b"y", times=1) == (0, b"y")


def job(number: int, job_input: Any) -> dict[str, Any]:
    return {"id": f"job {number}", "input": job_input, "other": [1]}


@pytest.mark.parametrize("space", ["", " \n"])
async def test_jobs_are_sifted_one_by_one_and_large_inputs_left_as_text(space: str) -> None:
    jobs = [job(0, {"text": "a"}), job(1, CHAT), job(2, None), {"id": 5}, None]
    body = f"{space}[{space}" + f"{space},{space}".join(map(json.dumps, jobs)) + f"{space}]{space}"
    first, large, *others = sift(body.encode())
    assert [first, *others] == [jobs[0], *jobs[2:]]
    assert (large["id"], large["other"]) == ("job 1", [1])
    assert json.loads(large["input"].text) == CHAT
    assert large["input"].outline == {"messages": None, "stream": True}


@pytest.mark.parametrize(
    ("body", "values"),
    [(b"[]", []), (b"[ ]", []), (b'{"id": "a"}', [{"id": "a"}]), (b"5", [5]), (b"null", [None])],
)
async def test_what_else_a_platform_may_send(body: bytes, values: list[Any]) -> None:
    assert list(sift(body)) == values


async def test_bomb_among_the_jobs_costs_no_other_and_none_comes_twice() -> None:
    bomb = '{"id": "b", "input": ' + "[" * 100_000 + "]" * 100_000 + "}"
    digits = '{"id": "d", "input": ' + "9" * 10_000 + "}"
    body = f'[{{"id": "a"}}, {bomb}, {digits}, {{"id": "c"}}]'.encode()
    assert [value["id"] for value in sift(body)] == ["a", "b", "d", "c"]


@pytest.mark.parametrize("body", [b"", b"[1, 2", b"[1 2]", b"nonsense", b"[,]"])
async def test_what_is_not_json_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(sift(body))


def intake(helper: HelperProcess, *, can_stream: bool = True, **environ: str) -> Intake:
    settings = GatewaySettings.from_environ(environ)
    return Intake(helper, settings, served_model_name="glm-4.7-flash", can_stream=can_stream)


def large(value: Any) -> LargeJson:
    """A value as it comes out of the sieve."""
    [sifted] = sift(json.dumps({"id": "a", "input": value}).encode())
    assert isinstance(sifted["input"], LargeJson)
    return sifted["input"]


@pytest.mark.parametrize("can_stream", [True, False])
async def test_large_input_becomes_the_same_request_as_a_small_one(helper: HelperProcess, can_stream: bool) -> None:
    takes = intake(helper, can_stream=can_stream)
    request = await takes.request_of(large(CHAT))
    assert request == await takes.request_of(CHAT)
    assert request.stream is can_stream


async def test_large_input_that_is_refused_says_why(helper: HelperProcess) -> None:
    with pytest.raises(RequestTooLargeError, match="MAX_REQUEST_BYTES"):
        await intake(helper, MAX_REQUEST_BYTES="1000").request_of(large(CHAT))
    with pytest.raises(InvalidInputError, match="'messages' must be a non-empty array"):
        await intake(helper).request_of(large({"messages": LARGE}))


async def test_route_of_a_large_input_is_known_from_its_outline() -> None:
    assert path_asked_for(large({"openai_route": "/v1/messages", "openai_input": CHAT})) == "/v1/messages"
    assert path_asked_for(large(CHAT)) == "/v1/chat/completions"
    assert path_asked_for(large(LARGE)) is None


async def test_helper_that_fails_fails_the_request_alone(
    helper: HelperProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.helper_process.RESULT_SECONDS", 0.0)
    with pytest.raises(JobError, match="too large for this worker to check"):
        await intake(helper).request_of(large(CHAT))


@pytest.mark.alone
async def test_loop_goes_on_meanwhile(helper: HelperProcess) -> None:
    value = {"input_ids": list(range(100_000, 2_800_000))}  # 20 MB
    began = time.monotonic()
    text = json.dumps(value).encode()
    json.loads(text)
    here = time.monotonic() - began
    lags: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            lags.append(time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    request = await intake(helper, MAX_REQUEST_BYTES="100000000").request_of(LargeJson(text))
    ticking.cancel()
    assert request.body is not None
    assert len(request.body) > 18_000_000
    assert max(lags) < here / 3, "as long as it would have taken here, the loop would have stood still"
