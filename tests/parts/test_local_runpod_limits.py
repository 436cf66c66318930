"""What the local RunPod keeps, for how long, and what it refuses when there is no more room."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.web_server import serving
from local_runpod import JobQueue, JobState, Limits, create_app
from local_runpod import worker_side as worker_side_module
from local_runpod.jobs import RUNSYNC_RETENTION_SECONDS, QueueClosedError, QueueFullError

pytestmark = pytest.mark.anyio

SMALL = Limits(unfinished_jobs=3, kept_jobs=3, bytes=4000, stream_bytes=1000, unread_bytes=100, workers=3)


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue(SMALL)


@pytest.fixture
async def api(queue: JobQueue) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(queue, long_poll_seconds=0.05))
    async with httpx.AsyncClient(transport=transport, base_url="http://local/v2/mine") as client:
        yield client


def finished(queue: JobQueue, *, size_bytes: int = 0, **submission: Any) -> str:
    """A job that a worker has finished; its id."""
    job = queue.submit(1, **submission)
    queue.take("w1", 1)
    queue.finish(job, output="x" * size_bytes, error=None, size_bytes=size_bytes)
    return job.id


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + seconds)


async def test_finished_job_is_forgotten_though_an_older_one_still_runs(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = queue.submit("runs for hours")
    queue.take("w1", 1)
    over = finished(queue)
    later(monkeypatch, 30 * 60 + 1)
    queue.ping("w1", {})
    assert list(queue.jobs) == [running.id]
    assert over not in queue.jobs
    assert queue.counts()[JobState.COMPLETED] == 1


async def test_runsync_s_result_is_kept_for_a_minute_and_run_s_for_thirty(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronous = finished(queue, retention_seconds=RUNSYNC_RETENTION_SECONDS)
    asynchronous = finished(queue)
    later(monkeypatch, 61)
    queue.ping("w1", {})
    assert synchronous not in queue.jobs
    assert asynchronous in queue.jobs


async def test_finished_jobs_make_room_oldest_first_and_those_of_runsync_before_all(queue: JobQueue) -> None:
    first, second = finished(queue, size_bytes=1500), finished(queue, size_bytes=1500)
    synchronous = finished(queue, size_bytes=900, retention_seconds=RUNSYNC_RETENTION_SECONDS)
    third = finished(queue, size_bytes=1000)
    assert set(queue.jobs) == {first, second, third}, synchronous
    fourth = finished(queue, size_bytes=1500)
    assert set(queue.jobs) == {second, third, fourth}
    assert queue.bytes == 4000


async def test_no_more_finished_jobs_are_kept_than_allowed(queue: JobQueue) -> None:
    ids = [finished(queue) for _ in range(5)]
    assert list(queue.jobs) == ids[-3:]


async def test_full_queue_refuses_with_429_and_says_when_to_come_again(api: httpx.AsyncClient, queue: JobQueue) -> None:
    for _ in range(3):
        queue.submit(1)
    answers = {
        path: await api.post(path, json={"input": 1, "model": "m"})
        for path in ("/run", "/runsync", "/openai/v1/chat/completions", "/openai/v1/messages")
    }
    assert {answer.status_code for answer in answers.values()} == {429}
    assert {answer.headers["retry-after"] for answer in answers.values()} == {"5"}
    assert answers["/run"].json()["error"]["message"] == "3 jobs are waiting or running; try again later"
    assert answers["/openai/v1/chat/completions"].json()["error"]["type"] == "rate_limit_error"
    assert answers["/openai/v1/messages"].json()["type"] == "error"
    queue.purge()
    assert (await api.post("/run", json={"input": 1})).status_code == 200


async def test_inputs_count_until_their_jobs_end(api: httpx.AsyncClient, queue: JobQueue) -> None:
    kilobyte = {"input": "x" * 1000}
    ids = [(await api.post("/run", json=kilobyte)).json()["id"] for _ in range(2)]
    assert 2000 < queue.bytes < 2100
    assert (await api.post("/run", json={"input": "x" * 2500})).status_code == 429
    for job_id in ids:
        await api.post(f"/cancel/{job_id}")
    assert queue.bytes == 0
    assert all(queue.jobs[job_id].input is None for job_id in ids)


async def test_bodies_that_are_being_read_count_too(queue: JobQueue) -> None:
    with queue.receiving() as first, queue.receiving() as second:
        first(3000)
        with pytest.raises(QueueFullError):
            second(1500)
        assert queue.bytes == 3000
    assert queue.bytes == 0


async def test_fetched_outputs_of_a_stream_are_let_go(api: httpx.AsyncClient, queue: JobQueue) -> None:
    job = queue.submit(1)
    queue.take("w1", 1)
    for _ in range(3):
        await api.post(f"/job-stream/w1/{job.id}", content=json.dumps({"output": "x" * 200}))
        assert len((await api.get(f"/stream/{job.id}")).json()["stream"]) == 1
        assert (job.stream, queue.bytes) == ([], 0)


async def test_stream_that_nobody_fetches_is_bounded_and_its_result_still_taken(
    api: httpx.AsyncClient, queue: JobQueue
) -> None:
    job = queue.submit(1)
    queue.take("w1", 1)
    output = json.dumps({"output": "x" * 300})
    posts = [(await api.post(f"/job-stream/w1/{job.id}", content=output)).status_code for _ in range(5)]
    assert posts == [200, 200, 200, 413, 413]
    assert (await api.post(f"/job-done/w1/{job.id}", content='{"output": "all of it"}')).status_code == 200
    assert job.state is JobState.COMPLETED
    assert len(queue.fetch(job)) == 3


async def test_slow_reader_of_a_stream_holds_its_worker_back(
    api: httpx.AsyncClient, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_side_module, "SLOW_READER_SECONDS", 0.05)
    job = queue.submit(1)
    job.has_reader = True
    queue.take("w1", 1)
    output = json.dumps({"output": "x" * 200})
    assert (await api.post(f"/job-stream/w1/{job.id}", content=output)).status_code == 200
    assert (await api.post(f"/job-stream/w1/{job.id}", content=output)).status_code == 429
    monkeypatch.setattr(worker_side_module, "SLOW_READER_SECONDS", 30)
    held = asyncio.create_task(api.post(f"/job-stream/w1/{job.id}", content=output))
    await asyncio.sleep(0.01)
    assert len(queue.fetch(job)) == 1
    assert (await held).status_code == 200
    assert len(job.stream) == 1


async def test_workers_that_have_gone_are_forgotten(queue: JobQueue) -> None:
    for number in range(10):
        queue.ping(f"w{number}", {})
        with queue.polled_by(f"w{number}"):
            pass
        job = queue.submit(1)
        queue.take(f"w{number}", 1)
        queue.cancel(job)
    assert list(queue.pings) == ["w7", "w8", "w9"]
    assert queue.workers()["idle"] <= 3
    assert await queue.stop_signals("w0", 0.01) == []
    assert await queue.stop_signals("w9", 0.01) != []


async def test_draining_queue_tells_those_that_wait_at_once_and_lets_the_rest_go_on(
    api: httpx.AsyncClient, queue: JobQueue
) -> None:
    running = queue.submit(1)
    queue.take("w1", 1)
    asking = [
        asyncio.create_task(api.post("/runsync", json={"input": 1})),
        asyncio.create_task(api.post("/openai/v1/chat/completions", json={"model": "m"})),
    ]
    async with asyncio.timeout(5):
        while len(queue.jobs) < 3:
            await asyncio.sleep(0)
    polling = asyncio.create_task(queue.wait_for_job(60))
    queue.drain("it stops")
    runsync, openai = await asyncio.gather(*asking)
    assert (runsync.json()["status"], "it stops" in runsync.json()["error"]) == ("FAILED", True)
    assert (openai.status_code, openai.headers["retry-after"]) == (503, "5")
    assert openai.json()["error"]["message"] == "it stops"
    assert await polling is False
    with pytest.raises(QueueClosedError):
        queue.submit(1)
    for path in ("/run", "/openai/v1/chat/completions"):
        late = await api.post(path, json={"input": 1})
        assert (late.status_code, late.headers["retry-after"], "error" in late.json()) == (503, "5", True)
    queue.finish(running, output=1, error=None)
    assert running.state is JobState.COMPLETED


async def test_closed_queue_leaves_no_job_unfinished(queue: JobQueue) -> None:
    jobs = [queue.submit(1), queue.submit(1)]
    queue.take("w1", 1)
    stops = asyncio.create_task(queue.stop_signals("w1", 60))
    await asyncio.sleep(0)
    queue.close("it stops")
    assert [job.state for job in jobs] == [JobState.FAILED] * 2
    assert await stops == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "take", "output", "fetch", "finish", "cancel", "forget", "purge"]),
        st.integers(0, 600),
    )
)


@given(STEPS)
async def test_bytes_are_counted_whatever_happens_to_the_jobs(steps: list[tuple[str, int]]) -> None:
    queue = JobQueue(replace(SMALL, unfinished_jobs=100, kept_jobs=5))
    for step, number in steps:
        jobs = list(queue.jobs.values())
        job = jobs[number % len(jobs)] if jobs else None
        try:
            match step:
                case "submit":
                    queue.submit(1, size_bytes=number)
                case "take":
                    queue.take("w1", number % 3)
                case "purge":
                    queue.purge()
                case "output" if job:
                    queue.add_output(job, "x", size_bytes=number)
                case "fetch" if job:
                    queue.fetch(job)
                case "finish" if job and job.state is JobState.IN_PROGRESS:
                    queue.finish(job, output=1, error=None, size_bytes=number)
                case "cancel" if job:
                    queue.cancel(job)
                case "forget" if job:
                    queue.forget(job)
        except QueueFullError:
            pass
        assert 0 <= queue.bytes <= SMALL.bytes
    queue.close()
    for job in list(queue.jobs.values()):
        queue.forget(job)
    assert (queue.bytes, queue.jobs) == (0, {})


async def test_failed_job_s_stream_ends_with_an_error_in_the_form_of_its_route(queue: JobQueue) -> None:
    error = json.dumps({"error": {"message": "broke", "type": "server_error", "param": None, "code": 502}})
    async with (
        serving(create_app(queue), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/openai", trust_env=False) as client,
    ):
        chat = await failed_stream(client, queue, "/v1/chat/completions", "data: 1\n\n", error)
        assert chat == f"data: 1\n\ndata: {error}\n\n"
        messages = await failed_stream(client, queue, "/v1/messages", "event: ping\ndata: {}\n\n", error)
        expected = '{"type": "error", "error": {"type": "api_error", "message": "broke"}}'
        assert messages == f"event: ping\ndata: {{}}\n\nevent: error\ndata: {expected}\n\n"
        responses = await failed_stream(client, queue, "/v1/responses", "event: x\ndata: {}\n\n", error)
        told = json.loads(responses.rpartition("event: error\ndata: ")[2])
        assert (told["type"], told["message"], told["error"]["code"]) == ("error", "broke", 502)
        for last in (f"data: {error}\n\n", "data: [DONE]\n\n", 'event: error\ndata: {"type": "error"}\n\n'):
            assert await failed_stream(client, queue, "/v1/chat/completions", last, error) == last


async def failed_stream(client: httpx.AsyncClient, queue: JobQueue, route: str, events: str, error: str) -> str:
    """What a caller gets of a job that fails after these events."""
    asking = asyncio.create_task(client.post(route, json={"stream": True}))
    assert await queue.wait_for_job(10)
    [job] = queue.take("w1", 1)
    queue.add_output(job, events)
    queue.finish(job, output=None, error=error)
    return (await asking).text


async def test_cancelled_job_s_stream_does_not_end_in_silence(queue: JobQueue) -> None:
    async with (
        serving(create_app(queue), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        asking = asyncio.create_task(client.post("/openai/v1/completions", json={"stream": True}))
        assert await queue.wait_for_job(10)
        [job] = queue.take("w1", 1)
        queue.add_output(job, "data: 1\n\n")
        await client.post(f"/cancel/{job.id}")
        assert "the job was cancelled" in (await asking).text


async def test_caller_that_leaves_while_its_unstreamed_answer_is_on_its_way_cancels_it(queue: JobQueue) -> None:
    """The worker has sent the answer as an output, and its result is still to come."""
    async with (
        serving(create_app(queue), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        asking = asyncio.create_task(client.post("/openai/v1/completions", json={"a": 1}))
        assert await queue.wait_for_job(10)
        [job] = queue.take("w1", 1)
        queue.add_output(job, {"choices": []})
        await asyncio.sleep(0.05)
        asking.cancel()
        assert (await job.finished(10)).state is JobState.CANCELLED
        assert await queue.stop_signals("w1", 10) == [job.id]
        assert queue.jobs == {}
