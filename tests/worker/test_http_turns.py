"""Plain HTTP on a full engine: as many requests wait as it runs, and the rest are told to come back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import httpx
import pytest

from scripts.worker_process import running_http_worker
from tests.waiting import ENOUGH_SECONDS, until

pytestmark = pytest.mark.anyio


async def statuses(url: str, count: int, **script: object) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client:
        body = {"messages": [{"role": "user", "content": "Hello"}], "script": script}
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(count)))


@pytest.mark.parametrize(
    ("environment", "most"),
    [({"MAX_RUNNING_REQUESTS": "4"}, 4 + 2), ({"MAX_CONCURRENCY": "3"}, 3), ({"MAX_CONCURRENCY": "auto:2"}, 2)],
)
async def test_as_many_again_wait_and_the_rest_get_503_with_retry_after(environment: dict[str, str], most: int) -> None:
    async with running_http_worker(environment) as worker:
        await until(lambda: "requests are answered" in worker.log)
        answers = await statuses(worker.http_url, 30, pause=2)
        seen = await worker.ask_engine()
        assert Counter(answer.status_code for answer in answers) == {200: 2 * most, 503: 30 - 2 * most}
        assert seen["most_at_once"] == most
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["message"].startswith("the engine is full: ")
        [answer] = await statuses(worker.http_url, 1)
        assert answer.status_code == 200


async def test_those_who_wait_for_their_turn_are_seen_to_wait() -> None:
    environment = {"MAX_CONCURRENCY": "2", "LOG_FORMAT": "json"}
    async with (
        running_http_worker(environment) as worker,
        httpx.AsyncClient(base_url=worker.http_url, timeout=60, trust_env=False) as client,
    ):
        await until(lambda: "requests are answered" in worker.log)
        sending = asyncio.create_task(statuses(worker.http_url, 3, pause=2))
        async with asyncio.timeout(ENOUGH_SECONDS):
            while (health := (await client.get("/health")).json())["in_flight"] < 3:
                pass
        assert (health["state"], health["capacity"], health["limit"], health["waiting"]) == ("ready", 2, "fixed", 1)
        assert {"worker_jobs_waiting 1.0", "worker_capacity_jobs 2.0"} <= set(
            (await client.get("/metrics")).text.split("\n")
        )
        await sending
        await until(lambda: worker.log.count('"outcome":"completed"') == 3)
        lines = [json.loads(line) for line in worker.log.splitlines()]
        waited = sorted(line["wait_seconds"] for line in lines if "outcome" in line)
        assert waited[1] < 1 < waited[2], "the third had to wait for one of the others, which take 2 s"


async def test_nobody_is_refused_before_it_is_known_what_fits() -> None:
    async with running_http_worker({"MAX_TOTAL_TOKENS": "8000"}) as worker:
        answers = await statuses(worker.http_url, 50, pause=1, tokens=100)
        assert {answer.status_code for answer in answers} == {200}
