"""The local RunPod's own manners, without a worker: the client's side, and what it refuses of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from local_runpod import Faults, JobQueue, JobState, create_app, worker_environment

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def api(queue: JobQueue, faults: Faults) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(queue, faults, long_poll_seconds=0.05))
    async with httpx.AsyncClient(transport=transport, base_url="http://local/v2/mine") as client:
        yield client


async def test_job_from_run_to_status(api: httpx.AsyncClient) -> None:
    job_id = (await api.post("/run", json={"input": {"a": 1}})).json()["id"]
    assert (await api.get(f"/status/{job_id}")).json() == {"id": job_id, "status": "IN_QUEUE"}
    assert (await api.get("/job-take/w1")).json() == {"id": job_id, "input": {"a": 1}}
    status = (await api.get(f"/status/{job_id}")).json()
    assert (status["status"], status["workerId"]) == ("IN_PROGRESS", "w1")
    await api.post(f"/job-done/w1/{job_id}", content='{"output": [1]}')
    status = (await api.get(f"/status/{job_id}")).json()
    assert (status["status"], status["output"]) == ("COMPLETED", [1])
    assert {"delayTime", "executionTime"} <= set(status)


async def test_runsync_waits_for_the_answer(api: httpx.AsyncClient, queue: JobQueue) -> None:
    asking = asyncio.create_task(api.post("/runsync", json={"input": 1}))
    assert await queue.wait_for_job(1)
    [job] = queue.take("w1", 5)
    await api.post(f"/job-done/w1/{job.id}", content='{"error": "no"}')
    answer = (await asking).json()
    assert (answer["status"], answer["error"]) == ("FAILED", "no")


async def test_stream_gives_each_output_once(api: httpx.AsyncClient, queue: JobQueue) -> None:
    job = queue.submit(1)
    queue.take("w1", 1)
    await api.post(f"/job-stream/w1/{job.id}", content='{"output": "a"}')
    await api.post(f"/job-stream/w1/{job.id}", content='{"output": "b"}')
    first = (await api.get(f"/stream/{job.id}")).json()
    assert first == {"status": "IN_PROGRESS", "stream": [{"output": "a"}, {"output": "b"}]}
    await api.post(f"/job-done/w1/{job.id}", content='{"output": ["a", "b"]}')
    assert (await api.post(f"/stream/{job.id}")).json() == {"status": "COMPLETED", "stream": []}


async def test_cancelled_job_in_the_queue_is_never_handed_out(api: httpx.AsyncClient, queue: JobQueue) -> None:
    job = queue.submit(1)
    assert (await api.post(f"/cancel/{job.id}")).json() == {"id": job.id, "status": "CANCELLED"}
    assert (await api.get("/job-take-batch/w1", params={"batch_size": 5})).status_code == 204


async def test_cancelled_job_in_progress_is_told_to_its_worker_alone(api: httpx.AsyncClient, queue: JobQueue) -> None:
    job = queue.submit(1)
    queue.take("w1", 1)
    await api.post(f"/cancel/{job.id}")
    assert (await api.get("/job-stop/w2")).json() == {"jobsToStop": []}
    assert (await api.get("/job-stop/w1")).json() == {"jobsToStop": [job.id]}
    assert (await api.get("/job-stop/w1")).json() == {"jobsToStop": []}
    await api.post(f"/job-done/w1/{job.id}", content='{"output": 1}')
    assert job.state is JobState.CANCELLED


async def test_batch_is_taken_oldest_first_and_no_larger_than_asked(api: httpx.AsyncClient, queue: JobQueue) -> None:
    jobs = [queue.submit(n) for n in range(5)]
    taken = (await api.get("/job-take-batch/w1", params={"batch_size": 3})).json()
    assert [job["id"] for job in taken] == [job.id for job in jobs[:3]]


async def test_health_counts_jobs_and_workers(api: httpx.AsyncClient, queue: JobQueue) -> None:
    queue.submit(1)
    await api.get("/ping/w1", params={"job_id": "x"})
    health = (await api.get("/health")).json()
    assert health["jobs"] == {"inQueue": 1, "inProgress": 0, "completed": 0, "failed": 0}
    assert health["workers"] == {"running": 1}
    assert list(queue.pings["w1"]) == [{"job_id": "x"}]


@pytest.mark.parametrize(
    ("content", "status"),
    [("{", 400), ("[]", 400), ('{"output": NaN}', 400), ('{"output": "' + "x" * 1024 * 1024 + '"}', 413)],
)
async def test_output_that_runpod_would_refuse_is_refused(
    api: httpx.AsyncClient, queue: JobQueue, content: str, status: int
) -> None:
    job = queue.submit(1)
    queue.take("w1", 1)
    assert (await api.post(f"/job-stream/w1/{job.id}", content=content)).status_code == status
    assert job.stream == []


@pytest.mark.parametrize("path", ["/status/x", "/stream/x"])
async def test_unknown_job_is_not_found(api: httpx.AsyncClient, path: str) -> None:
    assert (await api.get(path)).status_code == 404


async def test_request_without_an_input_is_refused(api: httpx.AsyncClient) -> None:
    assert (await api.post("/run", json={"text": "hi"})).status_code == 400


async def test_faults_refuse_the_next_calls_of_one_route(api: httpx.AsyncClient, faults: Faults) -> None:
    faults.refusals["job-take"] = [429, 500]
    statuses = [(await api.get("/job-take/w1")).status_code for _ in range(3)]
    assert statuses == [429, 500, 204]
    assert (await api.get("/ping/w1")).status_code == 200


def test_worker_s_variables_have_the_form_of_a_deployed_pod_s() -> None:
    variables = worker_environment("http://x", endpoint_id="e", worker_id="w")
    assert variables["RUNPOD_WEBHOOK_GET_JOB"] == "http://x/v2/e/job-take/$ID?gpu=local"
    assert variables["RUNPOD_WEBHOOK_POST_OUTPUT"] == "http://x/v2/e/job-done/$RUNPOD_POD_ID/$ID?gpu=local"
    assert variables["RUNPOD_POD_ID"] == "w"
