"""Progress reports and refreshes, as far as test_sdk_table.py does not have them: in the middle of other things."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scripts.worker_process import running_platform
from tests.waiting import until
from tests.worker.sdk_places import ANSWER_SECONDS, PLACES, in_api_mode, on_runpod, start_program

pytestmark = pytest.mark.anyio


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
    ("where", "kind", "output"),
    [("worker-runpod", "async_generator", [{"n": 1}]), ("worker-waverless", "function", {"n": 1})],
)
async def test_worker_that_is_configured_so_ends_after_a_job(where: str, kind: str, output: Any) -> None:
    async with PLACES[where](kind, {"AGGREGATE": "yes", "REFRESH": "yes"}) as running:
        report = await running.answer({"return": {"n": 1}})
        assert await running.worker.exit_code(ANSWER_SECONDS) == 0
    assert report["posts"][-1][1] == {"output": output, "stopPod": True}
    assert "a job has asked for a fresh worker" in running.log


async def test_local_mode_ends_anyway() -> None:
    async with PLACES["local-runpod"]("function", {"REFRESH": "yes"}) as local:
        assert (await local.answer({"return": {"n": 1}}))["output"] == {"n": 1}


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


async def test_api_mode_restarts_in_place_after_every_job_and_says_so() -> None:
    async with in_api_mode("function", {"REFRESH": "yes"}) as api:
        answers = [await api.answer({"return": {"n": n}}) for n in range(3)]
        assert [answer["output"] for answer in answers] == [{"n": 0}, {"n": 1}, {"n": 2}]
        await until(lambda: api.log.count("restarting this worker in place") == 3)


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
