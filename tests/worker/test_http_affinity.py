"""The lines of docs/clients.md that keep a conversation on one worker, behind a stand-in for RunPod's load balancer."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.web_server import serving
from scripts.worker_process import REPOSITORY, Worker, running_http_worker

pytestmark = pytest.mark.anyio

CLIENTS = REPOSITORY / "docs" / "clients.md"
HEADER = "X-Runpod-Worker-Id"


def snippet() -> str:
    """The block that names the header."""
    blocks = re.findall(r"^```python\n(.*?)^```$", CLIENTS.read_text(), re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if HEADER in block]
    return str(code)


def load_balancer(workers: dict[str, Worker], client: httpx.AsyncClient) -> Starlette:
    """One worker after the other, unless the caller prefers one that there is."""
    turns = itertools.cycle(workers)

    async def forward(request: Request) -> Response:
        preferred = request.headers.get(HEADER, "")
        worker_id = preferred if preferred in workers else next(turns)
        headers = {"Content-Type": request.headers["content-type"], "Authorization": request.headers["authorization"]}
        url = f"{workers[worker_id].http_url}{request.url.path}"
        answer = await client.post(url, content=await request.body(), headers=headers)
        return Response(
            answer.content, answer.status_code, {HEADER: worker_id, "Content-Type": answer.headers["content-type"]}
        )

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])])


async def chats(worker: Worker) -> int:
    return sum(request["path"] == "/v1/chat/completions" for request in await worker.engine_requests())


async def test_conversation_stays_on_the_worker_that_has_it_cached(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first, second = await asyncio.gather(
            stack.enter_async_context(running_http_worker()), stack.enter_async_context(running_http_worker())
        )
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        port = await stack.enter_async_context(
            serving(load_balancer({"one": first, "two": second}, client), "127.0.0.1", 0)
        )
        code = snippet().replace("https://<ENDPOINT_ID>.api.runpod.ai", f"http://127.0.0.1:{port}")
        await run(code, tmp_path)
        assert sorted([await chats(first), await chats(second)]) == [0, 3]

        await run(code.replace("request.headers.update(worker)", "None"), tmp_path)
        assert sorted([await chats(first), await chats(second)]) != [0, 6], "without the header they are spread"


async def run(code: str, folder: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "RUNPOD_API_KEY": "-", "NO_PROXY": "127.0.0.1"}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "word word word \n" * 3
