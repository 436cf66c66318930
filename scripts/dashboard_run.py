"""A run to draw: the worker with the real SGLang and the tiny GLM, between a local RunPod and a Prometheus.

    .venv/bin/python -m scripts.dashboard_run [--prometheus PATH] [--minutes 6]

makes docs/dashboard.png. It needs Prometheus' own program (Debian: `apt-get install prometheus`), which scrapes as in
observe/prometheus.yml. The load grows and shrinks; some requests are wrong; at a third of the time the platform refuses
posts for a while, and at two thirds the engine's scheduler is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from common.tasks import cancel
from embedded.environment import engine_environment
from scripts import dashboard_picture
from scripts.dashboard_picture import Span
from scripts.worker_process import REPOSITORY, Platform, Worker, free_port, running_platform, running_worker

MINUTES = 6.0
CLIENTS = 14  # at the most; the worker below takes fewer
SLOTS = 8
START_SECONDS = 300.0
REFUSING_SECONDS = 40.0
CACHED = "You answer questions about the weather, briefly and politely, and never guess. " * 8


def config_of(worker_port: int, key_file: Path) -> str:
    """observe/prometheus.yml for a worker on this machine."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "observe" / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{worker_port}"]}]
    job["authorization"]["credentials_file"] = str(key_file)
    text: str = yaml.safe_dump(config)
    return text


@asynccontextmanager
async def running_prometheus(program: str, worker_port: int) -> AsyncGenerator[str, None]:
    """A Prometheus that scrapes the worker on this port, and its URL. Raises TimeoutError if it does not start."""
    with tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        config, key_file, port = Path(folder) / "prometheus.yml", Path(folder) / "local_api_key", free_port()
        key_file.touch()
        config.write_text(config_of(worker_port, key_file))
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        )
        try:
            url = f"http://127.0.0.1:{port}"
            await _until_ready(url)
            yield url
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _until_ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client, asyncio.timeout(30):
        while True:
            with suppress(httpx.TransportError):
                if (await client.get("/-/ready")).is_success:
                    return
            await asyncio.sleep(0.1)


async def run(program: str, minutes: float) -> None:
    """The run, and its picture."""
    metrics_port, seconds = free_port(), minutes * 60
    variables = {
        "METRICS_PORT": str(metrics_port),
        "MAX_RUNNING_REQUESTS": str(SLOTS),
        "ENABLE_CACHE_REPORT": "true",
    }
    async with running_prometheus(program, metrics_port) as url, running_platform() as platform:
        began = time.time()
        async with running_worker(platform, engine_environment({}) | variables, start_seconds=START_SECONDS) as worker:
            print(
                f"the worker is ready after {time.time() - began:.0f} s; {minutes:g} minutes of load follow", flush=True
            )
            tasks = [asyncio.create_task(client(platform, number, seconds)) for number in range(CLIENTS)]
            tasks += [asyncio.create_task(_refuse(platform, seconds / 3))]
            tasks += [asyncio.create_task(_kill(worker, seconds * 2 / 3))]
            await asyncio.sleep(seconds)
            span = Span(began - 10, time.time())
            answers = await dashboard_picture.ask(url, span)
            await cancel(*tasks)
    dashboard_picture.save(dashboard_picture.draw(answers, span))
    print(f"wrote {dashboard_picture.FILE.relative_to(REPOSITORY)}")


async def client(platform: Platform, number: int, seconds: float) -> None:
    """One client, which sends a request after the other while the crowd is large enough to include it."""
    rng, began = random.Random(number), time.monotonic()
    while True:
        share = (time.monotonic() - began) / seconds
        crowd = CLIENTS * (0.25 + 0.75 * math.sin(math.pi * min(share * 1.5, 1.0)) ** 2)
        if number >= crowd:
            await asyncio.sleep(1)
            continue
        job = platform.queue.submit(request(rng))
        if rng.random() < 0.03:  # hangs up
            await asyncio.sleep(rng.uniform(0.5, 2))
            platform.queue.cancel(job)
        await job.finished(seconds)
        platform.queue.forget(job)
        await asyncio.sleep(rng.uniform(0, 1.5))


def request(rng: random.Random) -> dict[str, Any]:
    """A chat with a long beginning that is the same for all; now and then something else, or something wrong."""
    question = f"What is the weather in city {rng.randrange(1000)}?"
    messages = [{"role": "system", "content": CACHED}, {"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": rng.randrange(30, 240), "ignore_eos": True}
    kind = rng.random()
    if kind < 0.04:
        return {"messages": "not a list"}
    if kind < 0.12:
        return {"text": question, "sampling_params": {"max_new_tokens": 24}}
    return {
        "openai_route": "/v1/chat/completions",
        "openai_input": body | {"stream": True, "stream_options": {"include_usage": True}},
    }


async def _refuse(platform: Platform, after_seconds: float) -> None:
    """Have the platform refuse some posts for a while."""
    await asyncio.sleep(after_seconds)
    end = time.monotonic() + REFUSING_SECONDS
    while time.monotonic() < end:
        platform.faults.refusals["job-stream"].append(503)
        platform.faults.refusals["job-done"].append(429)
        await asyncio.sleep(0.7)


async def _kill(worker: Worker, after_seconds: float) -> None:
    """Kill one of the engine's processes."""
    await asyncio.sleep(after_seconds)
    os.kill(worker.engine_pids()[-1], signal.SIGKILL)


def main() -> int:
    """Run and draw. Returns 2 without a Prometheus."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dashboard_run", description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", default="prometheus", help="its program (%(default)s, from the PATH)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of load (%(default)g)")
    arguments = parser.parse_args()
    if (program := shutil.which(arguments.prometheus)) is None:
        print(f"there is no program {arguments.prometheus!r}; on Debian, apt-get install prometheus", file=sys.stderr)
        return 2
    asyncio.run(run(program, arguments.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
