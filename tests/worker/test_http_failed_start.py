"""Plain HTTP: a worker that could start nowhere answers every route with the reason, for a while."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import httpx
import pytest

from local_runpod import worker_environment
from scripts.worker_process import Platform, Worker, running_platform, start_http_worker

pytestmark = pytest.mark.anyio

NOT_FOUND = {"exit_code": 1, "says": "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error\n"}
ROUTES = [
    ("GET", "/ping"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("GET", "/no/such/path"),
]


async def answers(worker: Worker) -> dict[str, httpx.Response]:
    """What every route answers, once one of them has said 503."""
    async with httpx.AsyncClient(base_url=worker.http_url, timeout=30, trust_env=False) as client:
        async with asyncio.timeout(30):
            status = 0
            while status != 503:
                await asyncio.sleep(0.01)
                with suppress(httpx.TransportError):
                    status = (await client.get("/ping")).status_code
        # A body of several pieces: it is read, so that the client gets to see the answer.
        body = {"messages": [{"role": "user", "content": "x" * 1_000_000}]}
        return {
            path: await client.request(method, path, json=body if method == "POST" else None) for method, path in ROUTES
        }


def ping_variables(platform: Platform) -> dict[str, str]:
    """Where a worker without jobs tells the platform how it is."""
    variables = worker_environment(platform.base_url, worker_id="http")
    return {name: variables[name] for name in ("RUNPOD_WEBHOOK_PING", "RUNPOD_AI_API_KEY", "RUNPOD_POD_ID")}


def checks_told(platform: Platform) -> list[str]:
    """The checks that failed, by what the platform was told."""
    return [ping["check"] for ping in platform.queue.pings["http"] if ping.get("status") == "unhealthy"]


@pytest.mark.parametrize(
    ("environment", "engine", "code", "said"),
    [
        ({}, NOT_FOUND, 1, "the model was not found, or is private; check MODEL_NAME"),
        ({"MAX_N": "many", "TP_SIZE": "3"}, {}, 2, "MAX_N='many': expected a whole number of at least 1"),
    ],
    ids=["model", "settings"],
)
async def test_every_route_answers_503_with_the_diagnosis_and_then_the_worker_ends(
    environment: dict[str, str], engine: dict[str, object], code: int, said: str
) -> None:
    async with running_platform() as platform:
        ping = ping_variables(platform)
        worker = await start_http_worker({"FAILED_START_SECONDS": "6"} | environment | ping, engine=engine)
        try:
            for path, answer in (await answers(worker)).items():
                assert answer.status_code == 503, path
                assert said in answer.json()["error"]["message"], path
            assert worker.process.returncode is None
            assert await worker.exit_code() == code
            assert checks_told(platform) == ["model" if code == 1 else "settings"]
        finally:
            await worker.stop()


@pytest.mark.parametrize(
    ("seconds", "engine", "check"),
    [
        ("0", NOT_FOUND, "model"),
        ("600", {"exit_code": 1, "says": "OSError: [Errno 28] No space left on device\n"}, "disk"),
        ("600", {"exit_code": 7}, "engine"),
    ],
    ids=["no time given", "disk", "unknown"],
)
async def test_worker_that_another_host_could_start_ends_at_once(
    seconds: str, engine: dict[str, object], check: str
) -> None:
    async with running_platform() as platform:
        environment = {"FAILED_START_SECONDS": seconds} | ping_variables(platform)
        worker = await start_http_worker(environment, engine=engine)
        assert await worker.exit_code() == 1
        assert checks_told(platform) == [check]
        assert "Traceback" not in worker.log


async def test_stop_ends_the_telling() -> None:
    worker = await start_http_worker({"MAX_N": "many", "FAILED_START_SECONDS": "600"})
    try:
        assert (await answers(worker))["/ping"].status_code == 503
    finally:
        assert await worker.stop() == 0


async def test_at_a_terminal_it_ends_at_once() -> None:
    ours, terminal = os.openpty()
    try:
        worker = await start_http_worker({"MAX_N": "many", "FAILED_START_SECONDS": ""}, stderr=terminal)
        assert await worker.exit_code() == 2  # well within the default, a minute
        os.set_blocking(ours, False)
        seen = b""
        while b"MAX_N='many': expected a whole number" not in seen:
            seen += os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(terminal)


async def test_port_that_is_wrong_itself_does_not_keep_the_reason_from_the_log() -> None:
    worker = await start_http_worker({"ENGINE_PORT": "x", "FAILED_START_SECONDS": "0"})
    assert await worker.exit_code() == 2
    assert "ENGINE_PORT='x': expected a whole number from 1 to 65535" in worker.log
    assert "Traceback" not in worker.log
