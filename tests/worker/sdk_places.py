"""A user's program in each of the places where handlers run, behind one face."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from common.web_server import serving
from local_runpod import Job, JobQueue, worker_environment
from scripts.worker_process import REPOSITORY, Worker, free_port, running_platform, start_worker, until_api_is_ready
from tests.worker.waverless import Waverless

PROGRAM = REPOSITORY / "tests" / "worker" / "sdk_program.py"
KINDS = ("function", "coroutine", "generator", "async_generator")
STREAMING = ("generator", "async_generator")
# Many programs start at once here, each with RunPod's SDK to import.
ANSWER_SECONDS = 120.0
NOBODY = "http://127.0.0.1:9"


class Place(Protocol):
    """Somewhere to send jobs to."""

    async def answer(self, job_input: Any) -> dict[str, Any]:
        """The job's report, as `/status` has it.

        On a platform also `posts`, what the worker has posted about it; of the API also `streamed`, what `/stream` has.
        """

    @property
    def log(self) -> str:
        """What the worker has logged so far."""


async def start_program(kind: str, environment: Mapping[str, str], *arguments: str, **more: Any) -> Worker:
    variables = {"KIND": kind, "PYTHONPATH": str(REPOSITORY), **environment}
    return await start_worker(more.pop("platform", None), variables, arguments=arguments, program=PROGRAM, **more)


@dataclass
class Deployed:
    """A worker on RunPod or Waverless."""

    worker: Worker
    queue: JobQueue
    posts: dict[str, list[tuple[str, Any]]]

    def submit(self, job_input: Any) -> Job:
        return self.queue.submit(job_input)

    async def answer(self, job_input: Any) -> dict[str, Any]:
        job = self.submit(job_input)
        await job.finished(ANSWER_SECONDS)
        return job.report() | {"posts": self.posts.pop(job.id)}

    @property
    def log(self) -> str:
        return self.worker.log

    def lines(self) -> list[dict[str, Any]]:
        """The log, as it is on a platform: an object a line."""
        return [json.loads(line) for line in self.log.splitlines()]


class Noted:
    """ASGI middleware: notes what is posted about each job, with the query's `isStream`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.posts: dict[str, list[tuple[str, Any]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = b""

        async def read() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message.get("more_body") and body:
                channel, _, job_id = scope["path"].split("/")[3:6]
                query = dict(pair.split("=") for pair in scope["query_string"].decode().split("&") if "=" in pair)
                name = f"{channel} isStream={query.get('isStream')}"
                self.posts.setdefault(job_id, []).append((name, json.loads(body)))
            return message

        await self.app(scope, read, send)


@asynccontextmanager
async def on_runpod(
    kind: str, environment: Mapping[str, str] | None = None, *arguments: str
) -> AsyncIterator[Deployed]:
    async with running_platform(wrap=Noted) as platform:
        worker = await start_program(kind, environment or {}, *arguments, platform=platform)
        try:
            yield Deployed(worker, platform.queue, platform.app.posts)
        finally:
            assert await worker.stop() == 0, worker.log


@asynccontextmanager
async def on_waverless(
    kind: str, environment: Mapping[str, str] | None = None, *arguments: str
) -> AsyncIterator[Deployed]:
    waverless = Waverless()
    app = Noted(waverless.app())
    async with serving(app, "127.0.0.1", 0) as port:
        waverless.base_url = f"http://127.0.0.1:{port}"
        variables = waverless.environment() | {"WAVERLESS_HEALTH_PORT": str(free_port())} | dict(environment or {})
        worker = await start_program(kind, variables, *arguments)
        try:
            yield Deployed(worker, waverless.queue, app.posts)
        finally:
            assert await worker.stop() == 0, worker.log
            assert waverless.refused == []


@dataclass
class Api:
    """A worker in API mode."""

    worker: Worker
    client: httpx.AsyncClient

    async def answer(self, job_input: Any) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.client.post("/runsync", json={"input": job_input})).json()
        streamed = (await self.client.get(f"/stream/{answer['id']}")).json()["stream"]
        return answer | {"streamed": [each["output"] for each in streamed]}

    @property
    def log(self) -> str:
        return self.worker.log


@asynccontextmanager
async def in_api_mode(kind: str, environment: Mapping[str, str] | None = None, *arguments: str) -> AsyncIterator[Api]:
    port = free_port()
    worker = await start_program(kind, environment or {}, "--rp_serve_api", "--rp_api_port", str(port), *arguments)
    url = f"http://127.0.0.1:{port}"
    try:
        await until_api_is_ready(url, worker, ANSWER_SECONDS)
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:
            yield Api(worker, client)
    finally:
        assert await worker.stop() == 0, worker.log


@dataclass
class Local:
    """Local mode: a process for each job."""

    kind: str
    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    log: str = ""

    async def answer(self, job_input: Any) -> dict[str, Any]:
        arguments = ("--test_input", json.dumps({"input": job_input}), *self.arguments)
        worker = await start_program(self.kind, self.environment, *arguments, stdout=subprocess.PIPE)
        output, _ = await asyncio.wait_for(worker.process.communicate(), ANSWER_SECONDS)
        self.log += worker.log
        report: dict[str, Any] = json.loads(output)
        assert worker.process.returncode == (0 if report["status"] == "COMPLETED" else 1)
        return report


@asynccontextmanager
async def in_local_mode(
    kind: str, environment: Mapping[str, str] | None = None, *arguments: str
) -> AsyncIterator[Local]:
    yield Local(kind, environment or {}, arguments)


def runpod_s_variables() -> dict[str, str]:
    """What a pod of RunPod has, whether it works for its queue or not."""
    return worker_environment(NOBODY)


def waverless_s_variables() -> dict[str, str]:
    waverless = Waverless()
    waverless.base_url = NOBODY
    return waverless.environment()


def _with(
    place: Callable[..., AbstractAsyncContextManager[Any]], variables: Callable[[], dict[str, str]]
) -> Callable[..., AbstractAsyncContextManager[Any]]:
    def start(
        kind: str, environment: Mapping[str, str] | None = None, *arguments: str
    ) -> AbstractAsyncContextManager[Any]:
        return place(kind, variables() | dict(environment or {}), *arguments)

    return start


# Mode and platform. On a pod, API mode and local mode have the platform's variables too.
PLACES: dict[str, Callable[..., AbstractAsyncContextManager[Any]]] = {
    "worker-runpod": on_runpod,
    "worker-waverless": on_waverless,
    "api-runpod": _with(in_api_mode, runpod_s_variables),
    "api-waverless": _with(in_api_mode, waverless_s_variables),
    "local-runpod": _with(in_local_mode, runpod_s_variables),
    "local-waverless": _with(in_local_mode, waverless_s_variables),
}
