"""Thousands of random and hostile inputs through one worker: each is answered or refused, and the worker lives."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from local_runpod import Job, JobState, RawJson
from scripts.worker_process import Platform, Worker, running_worker
from tests.answers import error_of
from tests.unit.test_build_request import BAD_ROUTES, FORBIDDEN_ROUTES

pytestmark = pytest.mark.anyio

AT_ONCE = 250
FIELDS = ["openai_route", "openai_input", "messages", "text", "input_ids", "sampling_params", "model", "stream", "n"]
HOSTILE: list[Any] = [
    None,
    True,
    -1,
    2**70,
    1e308,
    float("nan"),
    "",
    "\x00",
    "\ud800",
    "💥\u2028\u0085",
    "a" * 20_000,
    "data: [DONE]\n\n",
    '{"error": "x"}',
    "../../etc/passwd",
    "${jndi:ldap://x}",
    [],
    {},
    [[]],
    [None] * 1000,
    {"error": {"message": "x"}},
    {"role": "user"},
]


def some_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth > 4 or kind < 0.6:
        return rng.choice(HOSTILE)
    if kind < 0.7:
        return "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(20)))
    if kind < 0.85:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {str(rng.choice(HOSTILE))[:50]: some_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def some_input(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.2:
        return some_value(rng)
    if kind < 0.4:
        route = rng.choice([*BAD_ROUTES, *FORBIDDEN_ROUTES, "/v1/chat/completions", "/generate", some_value(rng)])
        return {"openai_route": route, "openai_input": some_value(rng)}
    if kind < 0.42:
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        levels = rng.randrange(50, 5000)
        return RawJson(f'{{"messages": {opening * levels}1{closing * levels}, "x": {"7" * rng.randrange(1, 9000)}}}')
    if kind < 0.5:
        script = {"status": rng.choice([200, 204, 302, 400, 500]), "body": str(rng.choice(HOSTILE))}
        return {"text": "x", "script": script if _is_sendable(script) else {}}
    return {field: some_value(rng) for field in rng.sample(FIELDS, rng.randrange(1, 4))}


def _is_sendable(script: dict[str, Any]) -> bool:
    return "\ud800" not in str(script["body"])


async def test_thousands_of_inputs_leave_the_worker_alive_and_answering(
    platform: Platform, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(20261122)
    inputs: int = pytestconfig.getoption("--inputs")
    async with running_worker(platform) as worker:
        seen: dict[int | None, int] = {}
        for begin in range(0, inputs, AT_ONCE):
            jobs = [platform.queue.submit(some_input(rng)) for _ in range(min(AT_ONCE, inputs - begin))]
            for job in jobs:
                code = await outcome(job)
                seen[code] = seen.get(code, 0) + 1
        assert sum(seen.values()) == inputs
        assert seen[None] > inputs / 100, "some were requests, and answered"
        assert {400, 403, 500} <= set(seen)
        await check_alive(platform, worker)


async def outcome(job: Job) -> int | None:
    await job.finished(30)
    assert job.answers == 1
    if job.state is JobState.COMPLETED:
        json.dumps(job.output, allow_nan=False)
        return None
    code: int = error_of(job)["code"]
    return code


async def check_alive(platform: Platform, worker: Worker) -> None:
    job = await platform.answer({"messages": [{"role": "user", "content": "Hello"}], "stream": True})
    assert job.state is JobState.COMPLETED
    assert worker.process.returncode is None
    assert len(worker.engine_starts()) == 1
    assert "unexpected" not in worker.log, "nothing came to the handler's last resort"
