"""local_runpod takes a worker's reports of progress for what they are: the job goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from local_runpod import Job, JobQueue, JobState, Limits, create_app

pytestmark = pytest.mark.anyio


class Both:
    """A client and a worker of the same local RunPod."""

    def __init__(self, queue: JobQueue, http: httpx.AsyncClient) -> None:
        self.queue = queue
        self.http = http

    async def job(self) -> Job:
        """A job that the worker has taken."""
        submitted = (await self.http.post("/run", json={"input": {}})).json()
        taken = (await self.http.get("/v2/e/job-take/w")).json()
        assert taken["id"] == submitted["id"]
        return self.queue.jobs[taken["id"]]

    async def report(self, job: Job, value: Any) -> None:
        await self._post("job-done", job, {"status": "IN_PROGRESS", "output": value})

    async def stream(self, job: Job, value: Any) -> None:
        await self._post("job-stream", job, {"output": value})

    async def done(self, job: Job, **result: Any) -> None:
        await self._post("job-done", job, result)

    async def _post(self, channel: str, job: Job, body: dict[str, Any]) -> None:
        assert (await self.http.post(f"/v2/e/{channel}/w/{job.id}", json=body)).status_code == 200

    async def ask(self, route: str, job: Job) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.http.get(f"/{route}/{job.id}")).json()
        return answer


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    queue = JobQueue(Limits(progress_reports=3))
    transport = httpx.ASGITransport(create_app(queue))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Both(queue, http)


async def test_status_shows_the_last_report_until_the_result_is_there(both: Both) -> None:
    job = await both.job()
    assert "output" not in await both.ask("status", job)
    for report in ("1/2", {"progress": "2/2"}):
        await both.report(job, report)
        status = await both.ask("status", job)
        assert (status["status"], status["output"]) == ("IN_PROGRESS", report)
    await both.done(job, output="result")
    status = await both.ask("status", job)
    assert (status["status"], status["output"], job.answers) == ("COMPLETED", "result", 1)


async def test_stream_shows_reports_among_outputs_in_their_order(both: Both) -> None:
    job = await both.job()
    await both.report(job, "loaded")
    await both.stream(job, "a")
    await both.stream(job, "b")
    await both.report(job, "half")
    await both.stream(job, "c")
    answer = await both.ask("stream", job)
    assert answer["status"] == "IN_PROGRESS"
    assert [each["output"] for each in answer["stream"]] == ["loaded", "a", "b", "half", "c"]
    await both.report(job, "almost")
    assert (await both.ask("stream", job))["stream"] == [{"output": "almost"}]
    await both.done(job, output=["a", "b", "c"])
    assert await both.ask("stream", job) == {"status": "COMPLETED", "stream": []}


async def test_only_the_newest_reports_are_kept_for_a_stream_that_nobody_reads(both: Both) -> None:
    job = await both.job()
    for step in range(10):
        await both.report(job, step)
    assert [each["output"] for each in (await both.ask("stream", job))["stream"]] == [7, 8, 9]


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
async def test_job_that_is_over_has_no_progress_and_takes_up_no_room_for_it(both: Both, end: str) -> None:
    job = await both.job()
    await both.report(job, "half")
    await both.report(job, "more")
    assert both.queue.bytes > 0
    if end == "cancelled":
        await both.http.post(f"/cancel/{job.id}")
    else:
        await both.done(job, **({"error": "no"} if end == "failed" else {"output": "yes"}))
    await both.report(job, "too late")
    status = await both.ask("status", job)
    assert status.get("output") == ("yes" if end == "done" else None)
    assert status["status"] == {"done": JobState.COMPLETED, "failed": JobState.FAILED}.get(end, JobState.CANCELLED)
    await both.ask("stream", job)
    both.queue.forget(job)
    assert both.queue.bytes == 0
