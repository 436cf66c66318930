"""The local RunPod's own manners, without a worker: the client's side, and what it refuses of a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from common.web_server import serving
from local_runpod import Faults, JobQueue, JobState, create_app, worker_environment
from local_runpod.webhooks import Webhooks
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def api(queue: JobQueue, faults: Faults) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(queue, faults, long_poll_seconds=0.05)) as client:
        yield client


def client_of(app: FastAPI, base_url: str = "http://local/v2/mine") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url)


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
    assert health["jobs"] == {"inQueue": 1, "inProgress": 0, "completed": 0, "failed": 0, "retried": 0}
    assert health["workers"] == {"idle": 0, "initializing": 1, "ready": 0, "running": 0, "throttled": 0}
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


async def test_purge_cancels_what_waits_and_leaves_what_runs(api: httpx.AsyncClient, queue: JobQueue) -> None:
    running, waiting = queue.submit(1), queue.submit(2)
    queue.take("w1", 1)
    assert (await api.post("/purge-queue")).json() == {"removed": 1, "status": "completed"}
    assert (running.state, waiting.state) == (JobState.IN_PROGRESS, JobState.CANCELLED)


async def test_worker_is_told_apart_by_what_it_does(api: httpx.AsyncClient, queue: JobQueue) -> None:
    polling = asyncio.create_task(api.get("/job-take/w1"))
    await until(lambda: queue.workers()["ready"])
    assert queue.workers() == {"idle": 1, "initializing": 0, "ready": 1, "running": 0, "throttled": 0}
    queue.submit(1)
    await polling
    assert queue.workers() == {"idle": 0, "initializing": 0, "ready": 0, "running": 1, "throttled": 0}


@pytest.mark.parametrize("wait", ["999", "300001", "x"])
async def test_wait_of_runsync_is_bounded(api: httpx.AsyncClient, wait: str) -> None:
    assert (await api.post("/runsync", params={"wait": wait}, json={"input": 1})).status_code == 422


async def test_runsync_gives_the_state_so_far_when_the_wait_is_over(api: httpx.AsyncClient) -> None:
    answer = (await api.post("/runsync", params={"wait": 1000}, json={"input": 1})).json()
    assert answer["status"] == "IN_QUEUE"


@pytest.mark.parametrize("webhook", ["ftp://x", "x", 5])
async def test_webhook_must_be_an_address(api: httpx.AsyncClient, webhook: object) -> None:
    answer = await api.post("/run", json={"input": 1, "webhook": webhook})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, '"webhook" must be an http or https URL')


async def test_finished_job_is_posted_to_its_webhook_until_that_takes_it(queue: JobQueue) -> None:
    received: list[Any] = []
    listener = FastAPI()

    @listener.post("/hook")
    async def hook(report: dict[str, Any]) -> Response:
        received.append(report)
        return Response(status_code=500 if len(received) == 1 else 200)

    app = create_app(queue, webhooks=Webhooks(pause_seconds=0.01))
    async with serving(listener, "127.0.0.1", 0) as port, client_of(app) as api:
        await api.post("/run", json={"input": 1, "webhook": f"http://127.0.0.1:{port}/hook"})
        await finish_next(queue, output=[7])
        await until(lambda: len(received) == 2)
    assert [(report["status"], report["output"]) for report in received] == [("COMPLETED", [7])] * 2


async def test_keys_are_asked_for_on_each_side(queue: JobQueue) -> None:
    async with client_of(create_app(queue, client_key="client", worker_key="worker", long_poll_seconds=0.01)) as api:
        for key in (b"", b"Bearer worker", "Bearer ä".encode()):
            for path in ("/health", "/openai/v1/models", "/status/x"):
                assert (await api.get(path, headers={b"Authorization": key})).status_code == 401
        for key in (b"Bearer client", b"client"):
            assert (await api.get("/health", headers={b"Authorization": key})).status_code == 200
        for path in ("/job-take/w1", "/ping/w1", "/job-stop/w1"):
            assert (await api.get(path, headers={"Authorization": "Bearer client"})).status_code == 401
            assert (await api.get(path, params={"key": "worker"})).status_code in (200, 204)
    assert list(queue.pings["w1"]) == [{}]


async def test_paths_work_without_prefix_too(queue: JobQueue) -> None:
    async with client_of(create_app(queue), base_url="http://local") as api:
        job_id = (await api.post("/run", json={"input": 1})).json()["id"]
        assert (await api.post(f"/status/{job_id}")).json()["status"] == "IN_QUEUE"
        assert (await api.get("/health")).json()["jobs"]["inQueue"] == 1
        assert (await api.get("/")).headers["content-type"].startswith("text/html")
        assert {"/v2/{endpoint_id}/run", "/v2/{endpoint_id}/openai/{path}"} <= set(
            (await api.get("/openapi.json")).json()["paths"]
        )


async def finish_next(queue: JobQueue, *, output: Any = None, error: str | None = None) -> Any:
    """Play the worker for one job; its input."""
    assert await queue.wait_for_job(2)
    [job] = queue.take("w1", 1)
    job_input = json.loads(job.input)
    queue.finish(job, output=output, error=error)
    return job_input


async def test_openai_call_becomes_a_job_and_its_output_the_answer(api: httpx.AsyncClient, queue: JobQueue) -> None:
    asking = asyncio.create_task(api.post("/openai/v1/chat/completions", json={"messages": []}))
    job_input = await finish_next(queue, output=[{"choices": []}])
    assert job_input == {"openai_route": "/v1/chat/completions", "openai_input": {"messages": []}}
    assert (await asking).json() == {"choices": []}
    asking = asyncio.create_task(api.get("/openai/v1/models"))
    assert await finish_next(queue, output=[{"data": []}]) == {"openai_route": "/v1/models"}
    assert (await asking).json() == {"data": []}
    assert queue.jobs == {}, "nobody knows their ids"
    assert (await api.get("/health")).json()["jobs"]["completed"] == 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ('{"error": {"message": "no", "code": 404}}', 404, "no"),
        ('{"error": {"message": "no", "code": 7}}', 500, "no"),
        ("plain words", 500, "plain words"),
        ('{"error": "text"}', 500, '{"error": "text"}'),
    ],
)
async def test_failed_job_is_an_error_response(
    api: httpx.AsyncClient, queue: JobQueue, error: str, status: int, message: str
) -> None:
    asking = asyncio.create_task(api.post("/openai/v1/completions", json={"a": 1}))
    await finish_next(queue, error=error)
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)


async def test_caller_that_leaves_cancels_its_job(queue: JobQueue) -> None:
    async with (
        serving(create_app(queue), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/openai/v1", trust_env=False) as client,
    ):
        leaving = asyncio.create_task(client.post("/chat/completions", json={"a": 1}))
        assert await queue.wait_for_job(10)
        [waiting] = queue.jobs.values()
        leaving.cancel()
        await until(lambda: waiting.state is JobState.CANCELLED)
        asking = asyncio.create_task(first_line(client))
        assert await queue.wait_for_job(10)
        [streaming] = queue.take("w1", 1)
        queue.add_output(streaming, "data: 1\n\n")
        assert await asking == "data: 1"
        assert (await streaming.finished(10)).state is JobState.CANCELLED


async def first_line(client: httpx.AsyncClient) -> str:
    """The first line of a streamed answer, whose rest is not waited for."""
    async with client.stream("POST", "/chat/completions", json={"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            return line
    return ""
