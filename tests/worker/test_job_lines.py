"""The worker's log on a platform: every line an object, one line for each job, and nothing of what was said in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from common.job_record import FIELDS
from local_runpod import JobState
from scripts.worker_process import Platform, Worker, running_platform, running_worker
from tests.waiting import until

pytestmark = pytest.mark.anyio

SAID = "xylophone-of-the-user"
HELLO = [{"role": "user", "content": SAID}]
STANDARD = ("requestId", "message", "level", "time", "source")
SAYS = "[2026-11-25 03:38:10 TP0] Load weight begin.\nplain words\nTraceback (most recent call last):\n  File a\n"


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[tuple[Platform, Worker]]:
    async with running_platform() as platform, running_worker(platform, engine={"says": SAYS}) as worker:
        yield platform, worker


def objects(worker: Worker) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


def lines_of_jobs(worker: Worker) -> dict[str, list[dict[str, Any]]]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in objects(worker):
        if "outcome" in line:
            lines.setdefault(line["requestId"], []).append(line)
    return lines


async def line_of(worker: Worker, job_id: str) -> dict[str, Any]:
    """The one line of a job. Its standard members and its fields are complete, and it has no others."""
    await until(lambda: job_id in lines_of_jobs(worker))
    [line] = lines_of_jobs(worker)[job_id]
    assert sorted(line) == sorted((*STANDARD, *FIELDS))
    assert job_id in line["message"]
    return line


async def test_streamed_job_has_one_line_with_its_times_and_tokens(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8, **details}}
    chunks = [
        {"choices": [{"delta": {"content": SAID}}]},
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        usage,
    ]
    script = {"chunks": chunks, "pause": 0.2}
    job = await platform.answer({"messages": HELLO, "stream": True, "script": script})
    line = await line_of(worker, job.id)
    expected = {
        "level": "INFO",
        "outcome": "completed",
        "code": 200,
        "route": "/v1/chat/completions",
        "streamed": True,
        "replayed": False,
        "prompt_tokens": 9,
        "cached_tokens": 4,
        "completion_tokens": 8,
        "reasoning_tokens": 3,
        "finish_reason": "length",
        "outputs": len(job.output),
        "bytes": len("".join(job.output).encode()),
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 <= line["wait_seconds"] < line["first_token_seconds"] < line["total_seconds"]
    assert line["first_token_seconds"] >= 0.2, "the first event comes after its pause"
    assert line["total_seconds"] >= 0.6


async def test_unstreamed_job_s_line_has_no_first_token(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}
    answer = {"choices": [{"finish_reason": "stop"}], "usage": usage}
    job = await platform.answer({"messages": HELLO, "script": {"answer": answer}})
    line = await line_of(worker, job.id)
    assert (line["outcome"], line["streamed"], line["first_token_seconds"]) == ("completed", False, None)
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (5, None, 2)
    assert (line["outputs"], line["bytes"]) == (1, len(json.dumps(answer)))


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "by the worker": ({"messages": SAID}, {"code": 400, "route": None, "streamed": None}),
    "a closed route": ({"openai_route": f"/{SAID}"}, {"code": 403, "route": None}),
    "by the engine": (
        {"text": SAID, "script": {"status": 422, "body": json.dumps({"detail": SAID})}},
        {"code": 422, "route": "/generate", "streamed": False},
    ),
    "in its stream": (
        {"messages": HELLO, "stream": True, "script": {"then": "error", "message": SAID}},
        {"code": 400, "route": "/v1/chat/completions", "streamed": True},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_failed_job_s_line_is_a_warning_with_its_code(running: tuple[Platform, Worker], name: str) -> None:
    platform, worker = running
    job_input, expected = REFUSED[name]
    job = await platform.answer(job_input)
    assert job.state is JobState.FAILED
    line = await line_of(worker, job.id)
    expected = {"outcome": "failed", "level": "WARN", **expected}
    assert {name: line[name] for name in expected} == expected


async def test_cancelled_job_s_line_says_so(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    script = {"events": 1000, "pause": 0.02}
    job = platform.queue.submit({"messages": HELLO, "stream": True, "script": script})
    await job.streamed(1)
    platform.queue.cancel(job)
    line = await line_of(worker, job.id)
    assert (line["outcome"], line["code"], line["streamed"]) == ("cancelled", None, True)
    assert line["bytes"] > 0


async def test_job_whose_result_is_refused_for_good_has_failed(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    job = platform.queue.submit({"messages": HELLO, "script": {"pause": 0.2}})
    await job.taken()
    platform.faults.refusals["job-done"].append(413)
    await job.finished(30)
    line = await line_of(worker, job.id)
    assert (line["outcome"], line["code"]) == ("failed", 502)


async def test_job_that_outlives_its_engine_is_marked_as_sent_again(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    job = await platform.answer(
        {"messages": HELLO, "stream": True, "script": {"first": {"events": 0, "then": "crash"}}}
    )
    assert job.state is JobState.COMPLETED
    line = await line_of(worker, job.id)
    assert line["replayed"] is True
    assert line["wait_seconds"] >= 0.5, "the pause before a restart"


async def test_every_line_is_an_object_with_the_sdk_s_names_and_tells_nothing_that_was_said(
    running: tuple[Platform, Worker],
) -> None:
    _, worker = running
    lines = objects(worker)
    for line in lines:
        assert {"requestId", "message", "level"} <= set(line)
        assert SAID not in json.dumps(line)
    engine = [(line["level"], line["message"]) for line in lines if line["source"] == "engine"]
    assert engine[:4] == [
        ("INFO", "TP0: Load weight begin."),
        ("INFO", "plain words"),
        ("ERROR", "Traceback (most recent call last):"),
        ("ERROR", "  File a"),
    ]
    assert all(len(entries) == 1 for entries in lines_of_jobs(worker).values()), "one line a job"


async def test_trace_context_of_a_job_reaches_the_engine_as_a_header(running: tuple[Platform, Worker]) -> None:
    platform, worker = running
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await platform.answer({"messages": HELLO, "metadata": {"traceparent": parent}})
    seen = (await worker.engine_requests())[-1]
    assert seen["headers"]["traceparent"] == parent
    assert "metadata" not in seen["body"]
