"""Workers as they are usually written: `python -m benchmarks.usual_ways NAME` in place of `handler.py`.

Each gives RunPod's SDK a generator of a few lines that passes the engine's stream on; they differ in how they read it.
They do not handle errors, cancellation or restarts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import aiohttp
import requests

from common.addresses import url_of

Job = dict[str, Any]


async def as_it_comes(job: Job) -> AsyncGenerator[str, None]:
    """aiohttp, unbuffered: each chunk that arrives becomes an output. The better workers do this."""
    timeout = aiohttp.ClientTimeout(None)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        session.post(engine_url(job), json=job["input"]) as response,
    ):
        async for chunk in response.content.iter_any():
            yield chunk.decode()


def line_by_line(job: Job) -> Generator[str, None, None]:
    """requests: each line becomes an output."""
    with requests.post(engine_url(job), json=job["input"], stream=True, timeout=600) as response:
        for line in response.iter_lines():
            if line:
                yield line.decode() + "\n\n"


def engine_url(job: Job) -> str:
    """The engine's URL for this job."""
    path = "/v1/chat/completions" if job["input"].get("stream") else "/generate"
    return url_of("127.0.0.1", int(os.environ["PORT"])) + path


WAYS: dict[str, Any] = {"aiohttp, as it comes": as_it_comes, "requests, line by line": line_by_line}


def until_ready(url: str) -> None:
    """Wait for the engine as such workers do: check once a second."""
    while True:
        try:
            requests.get(f"{url}/health", timeout=1)
            return
        except requests.RequestException:
            time.sleep(1)


def main() -> None:
    """Start the engine, then the SDK's loop."""
    handler, port = WAYS[sys.argv.pop(1)], os.environ["PORT"]
    command = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1", "--port", port]
    with subprocess.Popen(command) as engine:
        try:
            until_ready(f"http://127.0.0.1:{port}")
            os.environ["RUNPOD_LOG_LEVEL"] = "INFO"
            import runpod

            runpod.serverless.start(
                {
                    "handler": handler,
                    "return_aggregate_stream": True,
                    "concurrency_modifier": lambda _: int(os.environ.get("MAX_CONCURRENCY", "300")),
                }
            )
        finally:
            engine.terminate()


if __name__ == "__main__":
    main()
