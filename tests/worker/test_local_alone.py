"""`python -m local_runpod`, the local RunPod by itself, as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

import httpx
import pytest

from scripts.worker_process import REPOSITORY, clean_environment, free_port

pytestmark = pytest.mark.anyio

SECONDS = 30.0  # far longer than anything here takes

# Its own program, less patient with a connection on which nothing comes.
IMPATIENT = "from local_runpod import __main__ as program; program.HEAD_SECONDS = 2.0; program.main()"


async def test_local_runpod_by_itself_serves_its_workers_and_no_stranger() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        IMPATIENT,
        "--port",
        str(port),
        cwd=REPOSITORY,
        env=clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS, trust_env=False) as client:
            async with asyncio.timeout(SECONDS):
                while True:
                    with suppress(httpx.ConnectError):
                        assert (await client.get("/health")).status_code == 200
                        break
                    await asyncio.sleep(0.05)
            silent, writer = await asyncio.open_connection("127.0.0.1", port)
            job_id = (await client.post("/v2/local/run", json={"input": 1})).json()["id"]
            page = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
            assert (await client.post("/purge-queue", headers=page)).status_code == 403
            assert (await client.get("/health", headers={"Host": "evil.example"})).status_code == 403
            assert (await client.get("/health", headers={"X-Long": "x" * 200_000})).status_code == 400
            assert (await client.get("/v2/local/job-take/w1")).json() == {"id": job_id, "input": 1}
            async with asyncio.timeout(SECONDS):
                assert await silent.read() == b""
            writer.close()
    finally:
        os.kill(process.pid, signal.SIGINT)
        await asyncio.wait_for(process.wait(), SECONDS)
