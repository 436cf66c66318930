"""One measurement: a load on a worker between the emulated platform and the paced engine, or on the engine directly."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.emulated_platform import EmulatedPlatform, Job
from local_runpod import worker_environment
from tests.worker.harness import clean_environment, free_port

REPOSITORY = Path(__file__).parents[1]
INTERVAL_SECONDS = 0.01
START_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """What one load came to. Times in seconds; CPU and memory are the worker's process alone."""

    streams: int
    events: int
    seconds: float
    first_median: float
    first_p95: float
    job_median: float
    outputs_a_job: float = 0.0
    cpu_seconds: float = 0.0
    memory_mib: float = 0.0

    @property
    def events_a_second(self) -> float:
        """Of all streams together."""
        return self.events / self.seconds

    @property
    def cpu_ms_a_thousand(self) -> float:
        """Milliseconds of CPU for a thousand events."""
        return self.cpu_seconds * 1e6 / self.events


def chat(events: int) -> dict[str, Any]:
    """A stream of so many events."""
    return {
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": events,
        "interval": INTERVAL_SECONDS,
    }


@dataclass
class Worker:
    """A running worker, its platform, and where its engine listens."""

    platform: EmulatedPlatform
    process: asyncio.subprocess.Process
    engine_url: str
    ready_to_take_seconds: float

    def cpu_seconds(self) -> float:
        """User and system time of its process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """Resident memory of its process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def running_worker(
    variant: str, round_trip: float, environment: dict[str, str] | None = None
) -> AsyncGenerator[Worker, None]:
    """A worker of this variant, with its first job answered."""
    platform = EmulatedPlatform(round_trip)
    port = free_port()
    log = Path(os.environ.get("BENCH_LOG", os.devnull)).open("ab")  # noqa: SIM115, ASYNC230
    variables = clean_environment() | worker_environment(await platform.start())
    variables |= {
        "PYTHONPATH": f"{REPOSITORY / 'benchmarks' / 'paced_engine'}:{REPOSITORY}",
        "PORT": str(port),
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.variants", variant),
        cwd=REPOSITORY,
        env=variables | (environment or {}),
        stdout=log,
        stderr=log,
    )
    engine_url = f"http://127.0.0.1:{port}"
    try:
        warm = asyncio.create_task(until_warm(engine_url))
        first = platform.submit(chat(5))
        await asyncio.wait_for(first.over.wait(), START_SECONDS)
        warm_at = await warm
        yield Worker(platform, process, engine_url, max(0.0, (platform.first_take_at or 0) - warm_at))
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        platform.stop()
        log.close()


async def until_warm(engine_url: str) -> float:
    """When the engine first answered on /health, on the clock of `time.monotonic()`."""
    async with aiohttp.ClientSession() as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{engine_url}/health"):
                    return time.monotonic()
            await asyncio.sleep(0.005)


async def load(worker: Worker, streams: int, events: int) -> Result:
    """So many streams at once, submitted together."""
    cpu = worker.cpu_seconds()
    began = time.monotonic()
    jobs = [worker.platform.submit(chat(events)) for _ in range(streams)]
    for job in jobs:
        await job.over.wait()
    seconds = time.monotonic() - began
    complain(jobs, events)
    return Result(
        streams=streams,
        events=streams * events,
        seconds=seconds,
        first_median=statistics.median(job.first_seconds for job in jobs),
        first_p95=percentile_95([job.first_seconds for job in jobs]),
        job_median=statistics.median(job.over_at - job.submitted_at for job in jobs),
        outputs_a_job=sum(job.outputs for job in jobs) / streams,
        cpu_seconds=worker.cpu_seconds() - cpu,
        memory_mib=worker.memory_mib(),
    )


def complain(jobs: list[Job], events: int) -> None:
    """A measurement of wrong answers is none."""
    wrong = [job for job in jobs if job.error or job.events != events + 1]  # and [DONE]
    if wrong:
        raise RuntimeError(f"{len(wrong)} jobs went wrong, such as {wrong[0]}")


async def directly(engine_url: str, streams: int, events: int) -> Result:
    """The same load by a client straight to the engine, without worker and platform."""
    firsts: list[float] = []

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{engine_url}/v1/chat/completions", json=chat(events)) as response:
            first = True
            while await response.content.readany():
                if first:
                    firsts.append(time.monotonic() - began)
                first = False

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        began = time.monotonic()
        await asyncio.gather(*(one(session) for _ in range(streams)))
        seconds = time.monotonic() - began
    return Result(streams, streams * events, seconds, statistics.median(firsts), percentile_95(firsts), seconds)


async def short_jobs(worker: Worker, count: int, seconds: float) -> float:
    """How long so many jobs of so many seconds take."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "interval": seconds}
    began = time.monotonic()
    for job in [worker.platform.submit(body) for _ in range(count)]:
        await job.over.wait()
    return time.monotonic() - began


def percentile_95(values: list[float]) -> float:
    """The value that 95 % do not exceed."""
    return sorted(values)[max(0, int(len(values) * 0.95) - 1)]
