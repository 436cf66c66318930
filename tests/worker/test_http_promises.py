"""Plain HTTP: what becomes of requests when the engine starts, dies or is given up, and when the worker stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts.worker_process import (
    Worker,
    free_port,
    running_http_worker,
    start_http_worker,
    until_http_is_ready,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
ROUTE = "/v1/chat/completions"


def client_of(worker: Worker) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=500)
    return httpx.AsyncClient(base_url=worker.http_url, timeout=60, trust_env=False, limits=limits)


async def kill_engine(worker: Worker) -> None:
    await until(lambda: worker.engine_pid())
    os.kill(worker.engine_pid() or 0, signal.SIGKILL)


async def until_refused_or(worker: Worker, status: int) -> None:
    async with client_of(worker) as client, asyncio.timeout(20):
        while (await client.get("/ping")).status_code != status:
            await asyncio.sleep(0.01)


async def test_health_tells_of_every_moment_of_a_life(tmp_path: Path) -> None:
    """204 from the start on, 200 once warm, 204 during a restart, 503 while draining."""
    warm = tmp_path / "warm"
    worker = await start_http_worker(engine={"ready_when": str(warm)})
    try:
        async with client_of(worker) as client:
            first: list[int] = []
            while not first:
                with suppress(httpx.ConnectError):
                    first.append((await client.get("/ping")).status_code)
            assert first == [204]
            assert not worker.starts_path.exists(), "it answers before the engine is started"
            await until(worker.starts_path.exists)
            for path in ("/ping", "/health", "/ready"):
                assert (await client.get(path)).status_code == 204
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200
            waiting = asyncio.create_task(client.get("/v1/models"))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            warm.touch()
            assert (await waiting).status_code == 200
            assert set(await until_http_is_ready(worker)) <= {204, 200}
            warm.unlink()
            await kill_engine(worker)
            await until_refused_or(worker, 204)
            warm.touch()
            await until_refused_or(worker, 200)
            slow = asyncio.create_task(client.post(ROUTE, json=CHAT | {"script": {"pause": 2}}))
            await asyncio.sleep(0.5)
            worker.process.send_signal(signal.SIGTERM)
            await until_refused_or(worker, 503)
            refused = await client.post(ROUTE, json=CHAT)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["type"] == "server_error"
            assert (await slow).status_code == 200
        assert await worker.exit_code() == 0
    finally:
        await worker.stop()


async def test_health_has_a_path_and_a_port_of_its_own() -> None:
    port = free_port()
    environment = {"PORT_HEALTH": str(port), "HEALTH_CHECK_PATH": "/healthz", "API_KEY": "key-of-clients"}
    async with running_http_worker(environment) as worker, client_of(worker) as client:
        assert (await client.get("/healthz")).status_code == 200
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as other:
            for path in ("/healthz", "/ping"):
                assert (await other.get(path)).status_code == 200
            assert (
                await other.get("/v1/models", headers={"Authorization": "Bearer key-of-clients"})
            ).status_code == 404


async def test_path_for_health_checks_means_the_same_whichever_it_is() -> None:
    worker = await start_http_worker({"HEALTH_CHECK_PATH": "/health/ready"}, engine={"ready_after": 600})
    try:
        async with client_of(worker) as client:
            await until(worker.starts_path.exists)  # from here on, it is the server itself that answers
            for path, status in (("/health/ready", 204), ("/ping", 204), ("/health/live", 200)):
                assert (await client.get(path)).status_code == status
    finally:
        await worker.stop()


@pytest.mark.parametrize("mode", ["http", "HTTP"])
async def test_mode_is_a_variable_too(mode: str) -> None:
    async with running_http_worker({"MODE": mode}, arguments=()) as worker, client_of(worker) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_engine_killed_under_fifty_streams_loses_none_that_had_sent_nothing() -> None:
    quiet = CHAT | {"stream": True, "script": {"first": {"then": "hang", "events": 0}, "events": 5}}
    begun = CHAT | {"stream": True, "script": {"first": {"then": "hang", "events": 2}, "events": 5}}
    async with running_http_worker() as worker, client_of(worker) as client:
        answers = [asyncio.create_task(client.post(ROUTE, json=body)) for body in [quiet, begun] * 25]
        async with asyncio.timeout(20):
            while len(await worker.engine_requests()) < 50:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        await kill_engine(worker)
        done = await asyncio.gather(*answers)
        assert [answer.status_code for answer in done] == [200] * 50
        for number, answer in enumerate(done):
            events = answer.text.removesuffix("\n\n").split("\n\n")
            if number % 2 == 0:
                assert len(events) == 6
                assert events[-1] == "data: [DONE]"
            else:
                assert len(events) == 3
                error = json.loads(events[-1].removeprefix("data: "))["error"]
                assert error["code"] == 502
                assert "cut off" in error["message"]


async def test_unstreamed_answer_that_broke_off_is_asked_for_again() -> None:
    async with running_http_worker() as worker, client_of(worker) as client:
        answer = await client.post("/generate", json={"text": "x", "script": {"first": {"then": "crash"}}})
        assert answer.status_code == 200
        assert len(worker.engine_starts()) == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [("/v1/messages", "event: error\ndata: "), ("/v1/responses", "event: error\ndata: "), (ROUTE, "data: ")],
)
async def test_broken_stream_ends_with_its_routes_error_event(path: str, says: str) -> None:
    async with running_http_worker() as worker, client_of(worker) as client:
        for then in ("drop", "eof", "half", "abort"):
            answer = await client.post(path, json={"stream": True, "script": {"then": then}})
            last = answer.text.removesuffix("\n\n").split("\n\n")[-1]
            assert last.startswith(says)
            assert '"error"' in last
        whole = await client.post(path, json={"stream": True, "script": {"then": "drop_after_done"}})
        assert whole.text.endswith("data: [DONE]\n\n")


async def test_errors_inside_a_stream_are_the_engines_own() -> None:
    async with running_http_worker() as worker, client_of(worker) as client:
        answer = await client.post(ROUTE, json=CHAT | {"stream": True, "script": {"then": "error"}})
        events = answer.text.removesuffix("\n\n").split("\n\n")
        error = {"message": "scripted error", "type": "BadRequest", "code": 400}
        assert json.loads(events[-2].removeprefix("data: ")) == {"error": error}
        assert events[-1] == "data: [DONE]"


async def test_requests_wait_during_a_restart_up_to_a_limit(tmp_path: Path) -> None:
    warm = tmp_path / "warm"
    warm.touch()
    engine = {"ready_when": str(warm)}
    async with running_http_worker({"MAX_WAITING_JOBS": "3"}, engine=engine) as worker, client_of(worker) as client:
        warm.unlink()
        await kill_engine(worker)
        await until_refused_or(worker, 204)
        waiting = [asyncio.create_task(client.post(ROUTE, json=CHAT)) for _ in range(5)]
        await until(lambda: sum(task.done() for task in waiting) == 2)
        refused = [task.result() for task in waiting if task.done()]
        assert [answer.status_code for answer in refused] == [503, 503]
        assert "MAX_WAITING_JOBS" in refused[0].json()["error"]["message"]
        assert refused[0].headers["retry-after"]
        warm.touch()
        done = await asyncio.gather(*waiting)
        assert sorted(answer.status_code for answer in done) == [200, 200, 200, 503, 503]


async def test_engine_that_is_given_up_is_said_to_be_and_ends_the_worker() -> None:
    environment = {"ENGINE_MAX_RESTARTS": "0"}
    async with running_http_worker(environment) as worker, client_of(worker) as client:
        body = CHAT | {"script": {"pause": 600}}
        hanging = [asyncio.create_task(client.post(ROUTE, json=body)) for _ in range(3)]
        async with asyncio.timeout(20):
            while len(await worker.engine_requests()) < 3:
                await asyncio.sleep(0.05)
        began = time.monotonic()
        await kill_engine(worker)
        for answer in await asyncio.gather(*hanging):
            assert answer.status_code == 503
            assert "ENGINE_MAX_RESTARTS" in answer.json()["error"]["message"]
        health = await client.get("/ping")
        assert health.status_code == 503
        assert "ENGINE_MAX_RESTARTS" in health.json()["error"]["message"]
        assert await worker.exit_code() == 1
        assert time.monotonic() - began < 10


async def test_start_that_fails_answers_those_who_wait_and_ends_the_worker() -> None:
    worker = await start_http_worker(engine={"exit_code": 3, "exit_after": 2})
    try:
        async with client_of(worker) as client:
            await until_refused_or_connected(client)
            answer = await client.post(ROUTE, json=CHAT)
            assert answer.status_code == 503
            assert "exit" in answer.json()["error"]["message"]
        assert await worker.exit_code() == 1
    finally:
        await worker.stop()


async def until_refused_or_connected(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(httpx.ConnectError):
                await client.get("/ping")
                return
            await asyncio.sleep(0.01)


async def test_stop_finishes_what_it_can_and_breaks_off_the_rest() -> None:
    async with running_http_worker({"SHUTDOWN_TIMEOUT_SECONDS": "2"}) as worker, client_of(worker) as client:
        short = asyncio.create_task(client.post(ROUTE, json=CHAT | {"script": {"pause": 1}}))
        mute = asyncio.create_task(client.post(ROUTE, json=CHAT | {"script": {"pause": 600}}))
        stream = CHAT | {"stream": True, "script": {"then": "hang"}}
        streaming = asyncio.create_task(client.post(ROUTE, json=stream))
        async with asyncio.timeout(20):
            while len(await worker.engine_requests()) < 3:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        worker.process.send_signal(signal.SIGTERM)
        assert (await short).status_code == 200
        assert (await mute).status_code == 503
        last = (await streaming).text.removesuffix("\n\n").split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == 503
        assert await worker.exit_code() == 0


async def test_signal_while_the_engine_starts_answers_those_who_wait() -> None:
    worker = await start_http_worker(engine={"ready_after": 600})
    try:
        async with client_of(worker) as client:
            await until_refused_or_connected(client)
            waiting = asyncio.create_task(client.post(ROUTE, json=CHAT))
            await until(worker.starts_path.exists)
            await asyncio.sleep(0.3)
            worker.process.send_signal(signal.SIGTERM)
            assert (await waiting).status_code == 503
        assert await worker.exit_code() == 0
    finally:
        await worker.stop()


async def test_request_that_comes_before_the_program_is_imported_is_answered() -> None:
    worker = await start_http_worker()
    try:
        async with client_of(worker) as client:
            async with asyncio.timeout(20):
                while True:
                    with suppress(httpx.ConnectError):
                        answer = await client.get("/v1/models")
                        break
            assert answer.status_code == 200
    finally:
        await worker.stop()


@pytest.mark.parametrize(
    ("environment", "arguments", "says"),
    [
        ({"PORT": "http"}, ("--serve_http",), "PORT='http': expected a whole number from 1 to 65535"),
        ({"PORT": "30000", "ENGINE_PORT": "30000"}, ("--serve_http",), "ENGINE_PORT=30000: expected another port"),
        ({"HEALTH_CHECK_PATH": "ping"}, ("--serve_http",), "HEALTH_CHECK_PATH='ping': expected a plain path"),
        ({"MODE": "grpc"}, (), "MODE='grpc': expected queue or http"),
        ({"MODE": "queue"}, (), "MODE=queue, but no job queue is named"),
        ({}, ("--serve_http", "--rp_serve_api"), "different modes"),
    ],
)
async def test_wrong_settings_are_told_before_anything_starts(
    environment: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    worker = await start_http_worker(environment, arguments=arguments)
    assert await worker.exit_code() == 2
    assert says in worker.log
    assert not worker.starts_path.exists()


async def test_port_that_is_taken_is_told() -> None:
    async with running_http_worker() as first:
        port = first.http_url.rpartition(":")[2]
        second = await start_http_worker({"PORT": port})
        assert await second.exit_code() == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.log
