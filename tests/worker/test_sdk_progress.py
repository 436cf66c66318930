"""Progress reports and refreshes: from every kind of handler, in every place where handlers run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scripts.worker_process import ANSWER_SECONDS, running_platform
from tests.waiting import until
from tests.worker.sdk_places import KINDS, PLACES, Place, in_api_mode, on_runpod, start_program

pytestmark = pytest.mark.anyio

STREAMING = ("generator", "async_generator")
REPORTS = ["1/3", {"progress": 2}, 3]


@pytest.fixture(
    scope="module", params=[(place, kind) for place in PLACES for kind in KINDS], ids=lambda param: "-".join(param)
)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str, Place]]:
    """Each place with each kind of handler; every other program calls RunPod's own function."""
    where, kind = request.param
    environment = {"AGGREGATE": "yes"} | ({"IMPORTS_RUNPOD": "yes"} if kind in ("function", "async_generator") else {})
    async with PLACES[where](kind, environment) as running:
        yield where, kind, running


async def test_progress_leaves_the_job_running_and_its_result_whole(place: tuple[str, str, Place]) -> None:
    where, kind, running = place
    report = await running.answer({"progress": REPORTS, "return": "done"})
    assert (report["status"], report["output"]) == ("COMPLETED", expected(where, kind, "done"))
    if where == "runpod":
        progress = [("job-done isStream=false", {"status": "IN_PROGRESS", "output": value}) for value in REPORTS]
        assert [post for post in report["posts"] if "IN_PROGRESS" in str(post)] == progress
        last = ("job-done isStream=true", ["done"]) if kind in STREAMING else ("job-done isStream=false", "done")
        assert report["posts"][-1] == (last[0], {"output": last[1]})
    if where == "waverless":
        assert [channel.split()[0] for channel, _ in report["posts"]] == ["job-done"]
        await until(lambda: "progress_update sends nothing here" in running.log)
        assert running.log.count("progress_update sends nothing here") == 1
    if where == "local":
        assert [line.partition("progress: ")[2] for line in running.log.splitlines() if "progress: " in line] == [
            '"1/3"',
            '{"progress": 2}',
            "3",
        ]


def expected(where: str, kind: str, returned: Any) -> Any:
    if where == "waverless":
        return {"output": returned}
    return [returned] if kind in STREAMING else returned


async def test_reports_are_seen_while_the_job_runs() -> None:
    async with in_api_mode("coroutine") as api:
        job = (await api.client.post("/run", json={"input": {"progress": ["half"], "wait_seconds": 60}})).json()
        streamed: list[Any] = []
        while not streamed:
            streamed = (await api.client.get(f"/stream/{job['id']}")).json()["stream"]
        status = (await api.client.get(f"/status/{job['id']}")).json()
        assert (status["status"], status["output"], streamed) == ("IN_PROGRESS", "half", [{"output": "half"}])
        await api.client.post(f"/cancel/{job['id']}")


@pytest.mark.parametrize(
    ("where", "kind", "asked_by"),
    [
        ("runpod", "function", "the output"),
        ("runpod", "async_generator", "the configuration"),
        ("waverless", "function", "the configuration"),
        ("waverless", "async_generator", "the output"),
    ],
)
async def test_refreshed_worker_posts_its_result_and_ends(where: str, kind: str, asked_by: str) -> None:
    by_output = asked_by == "the output"
    async with PLACES[where](kind, {"AGGREGATE": "yes", "REFRESH": "no" if by_output else "yes"}) as running:
        report = await running.answer({"return": {"n": 1} | ({"refresh_worker": True} if by_output else {})})
        assert await running.worker.exit_code(ANSWER_SECONDS) == 0
    _, result = report["posts"][-1]
    output = [{"n": 1}] if kind in STREAMING and where == "runpod" else {"n": 1}
    assert result == {"output": output, "stopPod": True}
    assert "a job has asked for a fresh worker" in running.log


async def test_refresh_finishes_other_jobs_and_takes_no_more() -> None:
    async with on_runpod("coroutine", {"CONCURRENCY": "3"}) as running:
        slow = running.submit({"wait_seconds": 2, "return": "slow"})
        await until(lambda: slow.worker_id)
        quick = running.submit({"return": {"refresh_worker": True}})
        await quick.finished(ANSWER_SECONDS)
        late = running.submit({"return": "late"})
        assert await running.worker.exit_code(ANSWER_SECONDS) == 0
        assert (slow.output, slow.answers) == ("slow", 1)
        assert running.posts[quick.id] == [("job-done isStream=false", {"stopPod": True})]
        # What the poll that was open already brought is answered; anything later is left to other workers.
        assert (late.worker_id is None) == (late.answers == 0)


async def test_api_mode_restarts_in_place_and_says_so() -> None:
    async with in_api_mode("function") as api:
        answers = [await api.answer({"return": {"n": n, "refresh_worker": True}}) for n in range(3)]
        assert [answer["output"] for answer in answers] == [{"n": 0}, {"n": 1}, {"n": 2}]
        await until(lambda: api.log.count("restarting this worker in place") == 3)


async def test_refresh_that_is_not_asked_for_leaves_the_key_out_and_the_worker_on() -> None:
    async with on_runpod("function") as running:
        for n in range(2):
            report = await running.answer({"return": {"n": n, "refresh_worker": False}})
            assert report["posts"] == [("job-done isStream=false", {"output": {"n": n}})]


async def test_stop_during_a_refresh_is_a_stop() -> None:
    async with running_platform() as platform:
        worker = await start_program("coroutine", {"CONCURRENCY": "2"}, platform=platform)
        slow = platform.queue.submit({"wait_seconds": 60, "return": "slow"})
        await until(lambda: slow.worker_id)
        await platform.answer({"return": {"refresh_worker": True}})
        await until(lambda: "a job has asked for a fresh worker" in worker.log)
        worker.process.terminate()
        await until(lambda: "told to stop" in worker.log)
        worker.process.terminate()
        assert await asyncio.wait_for(worker.process.wait(), ANSWER_SECONDS) == 0
        assert "the worker stopped before this job was finished" in str(slow.error)
