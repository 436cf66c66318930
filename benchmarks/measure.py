"""One measurement: a load on a worker between the emulated platform and the paced engine, or on the engine directly.

BENCH_LOG names a file for the workers' logs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.emulated_platform import EmulatedPlatform, Job
from benchmarks.tables import percentile_95
from common.tasks import cancel
from embedded.environment import engine_environment
from local_runpod import worker_environment
from scripts.certificate import server_context
from scripts.worker_process import REPOSITORY, clean_environment, free_port

INTERVAL_SECONDS = 0.01
START_SECONDS, STOP_SECONDS = 180.0, 5.0
PACED, TINY = "paced", "tiny"
"""The engines: one that costs next to nothing, and SGLang on the CPU with the tiny GLM."""


class MeasurementError(Exception):
    """An invalid measurement: the worker does not work, or its answers are wrong."""


@dataclass(frozen=True)
class Result:
    """The result of one load. Times in seconds; CPU and memory are those of the worker's process only."""

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


def chat(events: int, interval: float = INTERVAL_SECONDS) -> dict[str, Any]:
    """A stream of this many events; `interval` is for the paced engine, `ignore_eos` for the real one."""
    return {
        "model": "glm-4.7-flash",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": events,
        "ignore_eos": True,
        "interval": interval,
    }


@dataclass
class Worker:
    """A running worker, its platform, and where its engine listens."""

    platform: EmulatedPlatform
    process: asyncio.subprocess.Process
    engine: str
    engine_url: str
    start_to_engine_seconds: float
    ready_to_take_seconds: float

    def cpu_seconds(self) -> float:
        """User and system time of its process so far."""
        # The clock that clock_getcpuclockid(3) names: to the nanosecond, where /proc counts in steps of 10 ms.
        return time.clock_gettime(~self.process.pid << 3 | 2)

    def memory_mib(self) -> float:
        """Resident memory of its process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def running_worker(
    program: Sequence[str],
    round_trip: float,
    environment: dict[str, str] | None = None,
    *,
    engine: str = PACED,
    tls: bool = False,
) -> AsyncGenerator[Worker, None]:
    """A worker that runs this program (a Python module and its arguments) and has answered its first job.

    tls: whether it reaches the platform over TLS, as a deployed worker does.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not tls:
            platform = EmulatedPlatform(round_trip)
        else:
            context, certificate = server_context(Path(folder))
            platform = EmulatedPlatform(round_trip, context)
            environment = (environment or {}) | {"SSL_CERT_FILE": str(certificate)}
        async with _running(program, platform, environment or {}, engine) as worker:
            yield worker


@asynccontextmanager
async def _running(
    program: Sequence[str], platform: EmulatedPlatform, environment: dict[str, str], engine: str
) -> AsyncGenerator[Worker, None]:
    port = free_port()
    log = Path(os.environ.get("BENCH_LOG", os.devnull)).open("ab")  # noqa: SIM115, ASYNC230
    variables = clean_environment() | worker_environment(await platform.start())
    variables |= {
        "PYTHONPATH": f"{REPOSITORY / 'benchmarks' / 'paced_engine'}:{REPOSITORY}",
        "PORT": str(port),
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }
    if engine == TINY:
        variables = engine_environment(variables | {"PYTHONPATH": str(REPOSITORY)})
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *program),
        cwd=REPOSITORY,
        env=variables | environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    engine_url = f"http://127.0.0.1:{port}"
    first = platform.submit(chat(5))
    warm = asyncio.create_task(until_warm(engine_url))
    over, ended = asyncio.create_task(first.over.wait()), asyncio.create_task(process.wait())
    try:
        await asyncio.wait({over, ended}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not over.done() or first.error:
            raise MeasurementError(f"{' '.join(program)} answered no job; BENCH_LOG=FILE keeps its log")
        warm_at, started_at = await warm
        yield Worker(
            platform=platform,
            process=process,
            engine=engine,
            engine_url=engine_url,
            start_to_engine_seconds=started_at - began,
            ready_to_take_seconds=max(0.0, (platform.first_take_at or 0) - warm_at),
        )
    finally:
        await cancel(warm, over, ended)
        await end(process)
        platform.stop()
        log.close()


async def end(process: asyncio.subprocess.Process) -> None:
    """End a worker and everything it started. The SDK's loop would first wait for its last poll, up to 90 s."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def until_warm(engine_url: str) -> tuple[float, float]:
    """When the engine first answered on /health, and when it was started, as `time.monotonic()` seconds.

    The real engine does not say when it was started; then the second value is 0.
    """
    async with aiohttp.ClientSession() as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(f"{engine_url}/health") as response:
                    if response.status == 200:
                        warm_at = time.monotonic()
                        return warm_at, json.loads(await response.read() or b"{}").get("started_at", 0.0)
            await asyncio.sleep(0.005)


async def load(worker: Worker, streams: int, events: int, interval: float = INTERVAL_SECONDS) -> Result:
    """Run this many streams at once, submitted together."""
    cpu = worker.cpu_seconds()
    began = time.monotonic()
    jobs = [worker.platform.submit(chat(events, interval)) for _ in range(streams)]
    for job in jobs:
        await job.over.wait()
    seconds = time.monotonic() - began
    complain(jobs, events, worker.engine)
    return Result(
        streams=streams,
        events=sum(job.events - 1 for job in jobs),  # without [DONE]
        seconds=seconds,
        first_median=statistics.median(job.first_seconds for job in jobs),
        first_p95=percentile_95([job.first_seconds for job in jobs]),
        job_median=statistics.median(job.over_at - job.submitted_at for job in jobs),
        outputs_a_job=sum(job.outputs for job in jobs) / streams,
        cpu_seconds=worker.cpu_seconds() - cpu,
        memory_mib=worker.memory_mib(),
    )


def complain(jobs: list[Job], events: int, engine: str) -> None:
    """Raise MeasurementError if any answer is wrong."""
    expected = range(events + 1, events + 2)  # and [DONE]
    if engine == TINY:  # one more event at each end, and sometimes several tokens in one
        expected = range(2, events + 4)
    wrong = [job for job in jobs if job.error or job.events not in expected]
    if wrong:
        raise MeasurementError(f"{len(wrong)} jobs went wrong, such as {wrong[0]}")


async def directly(engine_url: str, streams: int, events: int) -> Result:
    """The same load from a client straight to the engine, without worker and platform."""
    firsts: list[float] = []
    received = 0

    async def one(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{engine_url}/v1/chat/completions", json=chat(events)) as response:
            nonlocal received
            first = True
            while chunk := await response.content.readany():
                received += chunk.count(b"data: ")
                if first:
                    firsts.append(time.monotonic() - began)
                first = False

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        began = time.monotonic()
        await asyncio.gather(*(one(session) for _ in range(streams)))
        seconds = time.monotonic() - began
    return Result(streams, received - streams, seconds, statistics.median(firsts), percentile_95(firsts), seconds)


async def short_jobs(worker: Worker, count: int, seconds: float) -> float:
    """How long this many jobs of this many seconds take."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "interval": seconds}
    began = time.monotonic()
    for job in [worker.platform.submit(body) for _ in range(count)]:
        await job.over.wait()
    return time.monotonic() - began
