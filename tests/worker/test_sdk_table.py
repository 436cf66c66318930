"""Every behaviour of a handler and of the environment, as a table: each of its rows in worker mode, API mode and local
mode, on RunPod and on Waverless, with every kind of handler that it is about.

The programs are started once, a kind of handler in a place each; each kind has its own environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from common.web_server import serving
from scripts.worker_process import children_of, command_line, free_port
from tests.waiting import until
from tests.worker.heartbeat import keeper_of
from tests.worker.sdk_places import (
    ANSWER_SECONDS,
    KINDS,
    PLACES,
    STREAMING,
    Api,
    Deployed,
    Place,
    in_local_mode,
    runpod_s_variables,
    start_program,
    waverless_s_variables,
)

pytestmark = pytest.mark.anyio

WORKERS = ("worker-runpod", "worker-waverless")
APIS = ("api-runpod", "api-waverless")
LOCALS = ("local-runpod", "local-waverless")
STARTS_AT_ONCE = 4
FAILED = "the worker failed to handle this job"
SAID = "what the user says"


@dataclass(frozen=True)
class Setting:
    """The environment of a kind's programs. level: the log's, where `variable` or else a flag says it."""

    level: str
    levels: tuple[str, ...]
    """What is then logged."""
    ping_interval: str
    is_in_variable: bool = True
    more: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


SETTINGS = {
    "function": Setting("Warning", ("WARN", "ERROR"), "0", more={"WEBHOOK_HOSTS": "127.0.0.1,hooks.example"}),
    "coroutine": Setting(
        "debug",
        ("DEBUG", "INFO", "WARN", "ERROR"),
        "250",
        is_in_variable=False,
        more={"CONCURRENCY": "3", "IMPORTS_RUNPOD": "yes"},
    ),
    "generator": Setting(
        "warn", ("WARN", "ERROR"), "soon", more={"AGGREGATE": "yes", "WEBHOOK_HOSTS": "hooks.example"}
    ),
    "async_generator": Setting("INFO", ("INFO", "WARN", "ERROR"), "1500.5", flags=("debugger",)),
}


def started_with(where: str, kind: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The environment and the flags of a place's program."""
    mode, platform = where.split("-")
    prefix, flag = ("RUNPOD", "rp") if platform == "runpod" else ("WAVERLESS", "waverless")
    setting = SETTINGS[kind]
    variables = dict(setting.more) | {f"{prefix}_PING_INTERVAL": setting.ping_interval}
    flags = [f"--{flag}_{name}" for name in setting.flags]
    if setting.is_in_variable:
        variables[f"{prefix}_LOG_LEVEL"] = setting.level
    else:
        flags += [f"--{flag}_log_level", setting.level]
    if kind == "function":  # a pod without an id
        variables |= {f"{prefix}_POD_ID": "", "DEVICE_ID": "gpu-3"}
    if where == "worker-waverless" and kind == "coroutine":
        flags += ["--waverless_api_port", str(free_port())]
    if mode == "local":
        variables.pop("IMPORTS_RUNPOD", None)  # takes a second for each job
    return variables, tuple(flags)


Places = dict[tuple[str, str], Any]


@pytest.fixture(scope="module")
async def places() -> AsyncIterator[Places]:
    """Every kind of handler in every place."""
    a_few = asyncio.Semaphore(STARTS_AT_ONCE)

    async def start(stack: AsyncExitStack, where: str, kind: str) -> Place:
        variables, flags = started_with(where, kind)
        async with a_few:
            place: Place = await stack.enter_async_context(PLACES[where](kind, variables, *flags))
            if isinstance(place, Deployed):
                await place.answer({"return": 0})
        return place

    everywhere = [(where, kind) for where in PLACES for kind in KINDS]
    async with AsyncExitStack() as stack:
        entered = await asyncio.gather(*(start(stack, *each) for each in everywhere))
        yield dict(zip(everywhere, entered, strict=True))


@dataclass(frozen=True)
class Row:
    """What a job asks of the program, and what comes of it.

    gives: the outputs, one for a function. error: part of why the job fails; its other outputs are not looked at.
    reports: of its progress. never: what must not be in any log but that of local mode.
    """

    name: str
    asks: dict[str, Any]
    gives: list[Any] = field(default_factory=list)
    error: str | None = None
    reports: list[Any] = field(default_factory=list)
    kinds: tuple[str, ...] = KINDS
    never: str | None = None


TABLE = [
    Row("a value", {"return": "text"}, ["text"]),
    Row("what is falsy", {"return": 0}, [0]),
    Row(
        "progress leaves the job running",
        {"progress": ["1/3", {SAID: 2}, 3], "return": "done"},
        ["done"],
        reports=["1/3", {SAID: 2}, 3],
        never=SAID,
    ),
    Row("no error", {"return": {"n": 1, "error": None}}, [{"n": 1}]),
    Row("no refresh", {"return": {"n": 1, "refresh_worker": False}}, [{"n": 1}]),
    Row("an error", {"return": {"n": 1, "error": "no"}}, error="no"),
    Row("a list of errors", {"return": {"error": ["a", "b"]}}, error='["a", "b"]'),
    Row("sys.exit", {"raise": "exit", "code": 3}, error=FAILED),
    Row("KeyboardInterrupt", {"raise": "interrupt"}, error=FAILED),
    Row("a BaseException of one's own", {"raise": "own", "text": SAID}, error=FAILED, never=SAID),
    Row("an exception", {"raise": "error", "text": SAID}, error=FAILED, never=SAID),
    Row("exit in a task", {"raise": "exit", "code": 3, "in_task": True}, error=FAILED, kinds=("coroutine",)),
    Row("a job that the handler changes", {"give": "cleared", "return": 1}, [1]),
    Row("a date", {"give": "date"}, ["2026-01-02"]),
    Row("what is not JSON", {"give": "set"}, error="not JSON"),
    Row("a valid input", {"validate": {"prompt": "p", "temperature": 2}}, [{"prompt": "p", "temperature": 2.0}]),
    Row("a default", {"validate": {"prompt": "p"}}, [{"prompt": "p", "temperature": 1.0}]),
    Row(
        "a constraint where there is a default",
        {"validate": {"prompt": "p", "temperature": 5.0}},
        error='["temperature does not meet the constraints."]',
    ),
    Row(
        "a wrong input",
        {"validate": {"n": 1}},
        error='["Unexpected input. n is not a valid input option.", "prompt is a required input."]',
    ),
    Row("a stream", {"yield": ["a", {"b": 1}], "return": "c"}, ["a", {"b": 1}, "c"], kinds=STREAMING),
    Row("a stream of nothing", {}, [], kinds=STREAMING),
    Row(
        "a generator's thread, what belongs to it, and its context",
        {"threads": True},
        [[True, "unset", "set"]] * 2,
        kinds=("generator",),
    ),
]


def kinds_of(row: Row, where: str) -> list[str]:
    """In local mode, where each job is a process, half of the kinds on each platform."""
    if len(row.kinds) < len(KINDS) or where not in LOCALS:
        return list(row.kinds)
    return ["function", "generator"] if where == "local-runpod" else ["coroutine", "async_generator"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_what_comes_of_a_job(places: Places, row: Row, where: str) -> None:
    kinds = kinds_of(row, where)
    reports = await asyncio.gather(*(places[where, kind].answer(row.asks) for kind in kinds))
    for kind, report in zip(kinds, reports, strict=True):
        place = places[where, kind]
        if row.error is None:
            assert (report["status"], report.get("error")) == ("COMPLETED", None), (kind, report)
            assert report.get("output") == shown(where, kind, row.gives), (kind, report)
        else:
            assert (report["status"], row.error in report["error"]) == ("FAILED", True), (kind, report)
        check_posts(row, where, kind, report)
        await check_reports(row, where, kind, report, place)
        assert row.never is None or where in LOCALS or row.never not in place.log


def shown(where: str, kind: str, gives: list[Any]) -> Any:
    """How the result of a completed job looks."""
    outputs: Any = gives if kind in STREAMING else gives[0]
    if where == "worker-waverless":
        result = gives[0] if len(gives) == 1 else gives
        return result if isinstance(result, dict) else {"output": result}
    if kind == "async_generator" and where not in LOCALS:  # without return_aggregate_stream
        return []
    return outputs


def check_posts(row: Row, where: str, kind: str, report: dict[str, Any]) -> None:
    """What went to the platform: the stream as it is, and one result, of a stream for generators only."""
    if where not in WORKERS:
        return
    channels = [channel for channel, _ in report["posts"]]
    assert channels[-1] == f"job-done isStream={str(kind in STREAMING).lower()}"
    streamed = [value["output"] for channel, value in report["posts"] if channel.startswith("job-stream")]
    if where == "worker-waverless" or kind not in STREAMING:
        assert streamed == []
    elif row.error is None:
        assert streamed == row.gives


async def check_reports(row: Row, where: str, kind: str, report: dict[str, Any], place: Place) -> None:
    """The reports of a job's progress: all of them, in order, and before its result."""
    if where == "worker-runpod":
        posted = [value["output"] for _, value in report["posts"] if value.get("status") == "IN_PROGRESS"]
        assert posted == row.reports
    elif where == "worker-waverless":
        assert [channel.split()[0] for channel, _ in report["posts"]] == ["job-done"]
        if row.reports:
            await until(lambda: "progress_update sends nothing here" in place.log)
            assert place.log.count("progress_update sends nothing here") == 1
    elif where in APIS:
        outputs = row.gives if kind in STREAMING and row.error is None else []
        streamed = report["streamed"]
        assert [value for value in streamed if value in row.reports] == row.reports
        assert row.error or [value for value in streamed if value not in row.reports] == outputs
    elif "INFO" in SETTINGS[kind].levels and row.reports:
        said = [json.loads(line)["message"] for line in place.log.splitlines() if "progress: " in line]
        assert [json.loads(message.partition("progress: ")[2]) for message in said] == row.reports


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", KINDS)
async def test_log_has_the_levels_that_are_asked_for_as_people_write_them(
    places: Places, where: str, kind: str
) -> None:
    place, line = places[where, kind], f"a line from {where}"
    report = await place.answer({"log": line, "return": 1})
    levels = SETTINGS[kind].levels
    await until(lambda: place.log.count(line) >= len(levels))
    seen = [json.loads(text) for text in place.log.splitlines() if line in text]
    assert [(each["level"], each["requestId"], each["source"]) for each in seen] == [
        (level, report["id"], "handler") for level in levels
    ]


async def test_log_is_readable_where_there_is_no_platform() -> None:
    async with in_local_mode("function", {"RUNPOD_LOG_LEVEL": "warning"}) as place:
        await place.answer({"log": "a line", "return": 1})
    lines = [text for text in place.log.splitlines() if "a line" in text]
    assert [text.split(maxsplit=1)[1] for text in lines] == ["WARNING handler: a line", "ERROR   handler: a line"]


@pytest.mark.parametrize("where", [*WORKERS, *APIS])
async def test_as_many_jobs_run_at_once_as_the_modifier_says(places: Places, where: str) -> None:
    reports = await asyncio.gather(*(places[where, "coroutine"].answer({"meet": 3}) for _ in range(6)))
    assert {str(report["output"]) for report in reports} == {str(shown(where, "coroutine", [3]))}


@pytest.mark.parametrize("where", [*WORKERS, *APIS])
async def test_exit_in_a_task_that_a_handler_started_fails_its_job_alone(places: Places, where: str) -> None:
    place = places[where, "coroutine"]
    other = asyncio.create_task(place.answer({"return": "slow", "wait_seconds": 1}))
    report = await place.answer({"raise": "exit", "code": 3, "in_task": True})
    assert (report["status"], FAILED in report["error"]) == ("FAILED", True)
    assert (await other)["status"] == "COMPLETED"
    await until(lambda: "a task of a handler raised SystemExit; the worker goes on" in place.log)


async def test_handler_that_blocks_the_event_loop_is_named(places: Places) -> None:
    await asyncio.gather(*(is_named_when_it_blocks(places[where, "coroutine"], where) for where in PLACES))


async def is_named_when_it_blocks(place: Place, where: str) -> None:
    await place.answer({"block_seconds": 2})
    await until(lambda: "blocks the event loop, in coroutine (sdk_program.py:" in place.log)
    if where not in LOCALS:  # there the program is over
        await until(lambda: "has blocked the event loop for" in place.log)


@pytest.mark.parametrize("where", PLACES)
async def test_outputs_that_nobody_will_need_are_not_kept(places: Places, where: str) -> None:
    for kind in STREAMING:
        report = await places[where, kind].answer({"large": 5})
        if where == "worker-runpod":
            alive = [value["output"] for _, value in report["posts"]][-2]
        elif where in APIS:
            alive = report["streamed"][-1]
        else:
            alive = (report["output"]["output"] if where == "worker-waverless" else report["output"])[-1]
        is_needed = shown(where, kind, [1]) != []
        assert alive == 5 if is_needed else alive <= 1, kind


@pytest.mark.parametrize("where", APIS)
async def test_generator_without_aggregate_shows_nothing_and_the_log_says_why(places: Places, where: str) -> None:
    for kind, hints in (("async_generator", 1), ("generator", 0), ("coroutine", 0)):
        assert places[where, kind].log.count("no return_aggregate_stream") == hints


@pytest.mark.parametrize("where", APIS)
async def test_webhooks_lead_where_they_may(places: Places, where: str) -> None:
    """By default, on loopback, anywhere; with WEBHOOK_HOSTS, to those; redirects are not followed."""
    asked: list[tuple[str, Any]] = []
    app = FastAPI()

    @app.post("/{path}")
    async def take(path: str, request: Request) -> Response:
        asked.append((path, await request.json()))
        return Response(status_code=307, headers={"Location": "/elsewhere"}) if path == "moved" else Response()

    async with serving(app, "127.0.0.1", 0) as port:
        for kind, path, status in (
            ("function", "hook", 200),
            ("coroutine", "moved", 200),
            ("generator", "hook", 400),
        ):
            submission = {"input": {"return": kind}, "webhook": f"http://127.0.0.1:{port}/{path}"}
            answer = await places[where, kind].client.post("/run", json=submission)
            assert (answer.status_code, "WEBHOOK_HOSTS" in answer.text) == (status, status == 400)
        elsewhere = {"input": {}, "webhook": "http://1.1.1.1/hook"}
        assert (await places[where, "function"].client.post("/run", json=elsewhere)).status_code == 400
        await until(lambda: len(asked) == 2)
    assert {(path, report["output"]) for path, report in asked} == {("hook", "function"), ("moved", "coroutine")}


async def test_port_flag_moves_the_health_port_on_waverless(places: Places) -> None:
    command = command_line(places["worker-waverless", "coroutine"].worker.process.pid)
    port = command[command.index("--waverless_api_port") + 1]
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{port}/health")).json()["status"] == "ok"


@pytest.mark.parametrize("where", WORKERS)
async def test_worker_s_id_is_the_pod_s_or_the_device_s(places: Places, where: str) -> None:
    pod_id = "local-worker" if where == "worker-runpod" else "pod-7"
    for kind, worker_id in (("function", "gpu-3"), ("coroutine", pod_id)):
        queue = places[where, kind].queue
        job = await queue.submit({"return": {}}).finished(ANSWER_SECONDS)
        assert (job.worker_id, list(queue.pings)) == (worker_id, [worker_id])


async def test_heart_beats_on_whatever_the_interval_and_whatever_kills_it(places: Places) -> None:
    await asyncio.gather(*(beats_on_when_killed(places[where, kind], kind) for where in WORKERS for kind in KINDS))


async def beats_on_when_killed(place: Deployed, kind: str) -> None:
    setting = SETTINGS[kind]
    usable_ms = {"250": 1000, "1500.5": 1500}.get(setting.ping_interval, 10_000)
    warning = f"a ping interval of '{setting.ping_interval}' ms is of no use: pinging every {usable_ms} ms"
    await until(lambda: warning in place.log)
    keeper = keeper_of(place.worker)
    assert keeper is not None
    [heartbeat] = children_of(keeper)
    os.kill(heartbeat if kind in STREAMING else keeper, signal.SIGKILL)
    [pings] = place.queue.pings.values()
    for _ in range(2):
        last = pings[-1]
        await until(lambda last=last: pings[-1] is not last, ANSWER_SECONDS)  # type: ignore[misc]
    await until(lambda: "it is started again" in place.log)


# At last: what ends programs.


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("kind", ["function", "async_generator"])
async def test_output_asks_for_a_fresh_worker(places: Places, where: str, kind: str) -> None:
    place, expected = places[where, kind], shown(where, kind, [{"n": 1}])
    before = seen_in(await place.answer({"give": "seen"}))
    report = await place.answer({"return": {"n": 1, "refresh_worker": True}})
    assert (report["status"], report["output"]) == ("COMPLETED", expected)
    if isinstance(place, Deployed):
        assert report["posts"][-1][1] == {"output": expected, "stopPod": True}
        assert await place.worker.exit_code(ANSWER_SECONDS) == 0
    elif isinstance(place, Api):
        assert seen_in(await place.answer({"give": "seen"})) == before + 2, "it is the same program"
        if "INFO" in SETTINGS[kind].levels:
            await until(lambda: "restarting this worker in place" in place.log)


def seen_in(report: dict[str, Any]) -> int:
    """How many jobs the program had seen, according to its answer."""
    outputs = [
        report["output"],
        *report.get("streamed", []),
        *(value.get("output") for _, value in report.get("posts", [])),
    ]
    while not (isinstance(outputs[0], dict) and "seen" in outputs[0]):
        outputs = outputs[0] + outputs[1:] if isinstance(outputs[0], list) else outputs[1:]
    seen: int = outputs[0]["seen"]
    return seen


# What is asked for at the start.


@pytest.mark.parametrize("where", PLACES)
async def test_unknown_log_level_is_refused_with_the_list(where: str) -> None:
    mode, platform = where.split("-")
    flag, prefix = ("rp", "RUNPOD") if platform == "runpod" else ("waverless", "WAVERLESS")
    variables = runpod_s_variables() if platform == "runpod" else waverless_s_variables()
    variables |= {"FAILED_START_SECONDS": "0"}  # a worker need not fail jobs first
    for_mode = {"api": (f"--{flag}_serve_api",), "local": ("--test_input", '{"input": {}}')}.get(mode, ())
    for flags, level in (((f"--{flag}_log_level", "loud"), "info"), ((), "loud")):
        environment = variables | {f"{prefix}_LOG_LEVEL": level}
        worker = await start_program("function", environment, *for_mode, *flags)
        assert await worker.exit_code(ANSWER_SECONDS) == 2, worker.log
        assert "NOTSET, TRACE, DEBUG, INFO, WARN, ERROR" in worker.log
