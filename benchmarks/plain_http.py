"""Plain HTTP: the worker's HTTP server, beside the same client straight to the engine, in one run."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.measure import INTERVAL_SECONDS, MeasurementError, Result, chat
from benchmarks.report import Table
from benchmarks.tables import percentile_95
from scripts.worker_process import REPOSITORY, Worker, WorkerError, running_http_worker

STREAMS = (1, 8, 32, 128, 300)
EVENTS = 200  # two seconds
PAIRS = 3  # a client straight to the engine, and one through the worker, in turn
DIRECT, THROUGH = "a client straight to the engine", "through this worker"

LAG_STREAMS, LAG_INTERVAL_SECONDS, LAG_EVENTS = 64, 1 / 30, 90

_MARK = b'"sent_at": '  # in the events of the paced engine that are asked to tell


@dataclass(frozen=True)
class Load:
    """So many streams at once, each of so many events; stamped ones tell when the engine wrote them."""

    streams: int
    events: int = EVENTS
    interval_seconds: float = INTERVAL_SECONDS
    stamped: bool = False

    def body(self) -> dict[str, Any]:
        return chat(self.events, self.interval_seconds) | {"stamped": self.stamped}


@dataclass(frozen=True)
class Run:
    """What one load came to, and how late its events were, in seconds."""

    result: Result
    lags: list[float]


async def http() -> Table:
    """1 to 300 streams over plain HTTP: this worker beside the same client straight to its engine."""
    try:
        async with _worker() as worker:
            await _load(worker.http_url, Load(8, 20), worker)  # warms up
            await _load(worker.engine_url, Load(8, 20))
            pairs = [(count, await _pair(worker, Load(count))) for count in STREAMS]
            lag = Load(LAG_STREAMS, LAG_EVENTS, LAG_INTERVAL_SECONDS, stamped=True)
            lags = await _pair(worker, lag)
    except WorkerError as error:
        raise MeasurementError(f"the worker did not start: {str(error)[-500:]}") from None
    rows = [_row(f"{count} x 100/s", *pair) for count, pair in pairs]
    rows.append(_row(f"{LAG_STREAMS} x 30/s", *lags))
    results = [
        (name, run.result) for _, pair in [*pairs, (0, lags)] for name, run in zip((DIRECT, THROUGH), pair, strict=True)
    ]
    return Table(HEAD, rows, results)


HEAD = (
    "streams",
    "events/s, direct",
    "through the worker",
    "share",
    "first event, direct",
    "through",
    "lag p95, direct",
    "through",
    "CPU ms / 1000 events",
)


def _row(name: str, direct: Run, through: Run) -> tuple[str, ...]:
    rates = direct.result.events_a_second, through.result.events_a_second
    return (
        name,
        *(f"{rate:,.0f}" for rate in rates),
        f"{rates[1] / rates[0]:.2f}",
        *(f"{run.result.first_median * 1000:.1f} ms" for run in (direct, through)),
        *(f"{percentile_95(run.lags) * 1000:.1f} ms" if run.lags else "" for run in (direct, through)),
        f"{through.result.cpu_ms_a_thousand:.0f}",
    )


@asynccontextmanager
async def _worker() -> AsyncGenerator[Worker, None]:
    environment = {"PYTHONPATH": f"{REPOSITORY / 'benchmarks' / 'paced_engine'}:{REPOSITORY}"}
    async with running_http_worker(environment) as worker:
        yield worker


async def _pair(worker: Worker, load: Load) -> tuple[Run, Run]:
    """The medians of a few runs each way, in turn, so that whatever else the machine does hits both."""
    direct, through = [], []
    for _ in range(PAIRS):
        direct.append(await _load(worker.engine_url, load))
        through.append(await _load(worker.http_url, load, worker))
    return _median(direct), _median(through)


def _median(runs: list[Run]) -> Run:
    """The run with the median rate, with the medians of the first events, the lags and the CPU of all."""
    ordered = sorted(runs, key=lambda run: run.result.events_a_second)
    middle = ordered[len(ordered) // 2]
    result = replace(
        middle.result,
        first_median=statistics.median(run.result.first_median for run in runs),
        cpu_seconds=statistics.median(run.result.cpu_seconds for run in runs),
    )
    by_lag = sorted(runs, key=lambda run: percentile_95(run.lags) if run.lags else 0.0)
    return Run(result, by_lag[len(by_lag) // 2].lags)


async def _load(url: str, load: Load, worker: Worker | None = None) -> Run:
    """Run the load; worker: whose CPU counts. Raises MeasurementError for answers that are wrong."""
    firsts: list[float] = []
    lags: list[float] = []
    received = 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal received
        async with session.post(f"{url}/v1/chat/completions", json=load.body()) as response:
            is_first = True
            while chunk := await response.content.readany():
                received += chunk.count(b"data: ")
                if is_first:
                    firsts.append(time.monotonic() - began)
                    is_first = False
                if load.stamped:
                    now = time.time()
                    lags.extend(now - float(part[:20]) for part in chunk.split(_MARK)[1:])

    cpu = _cpu_seconds(worker)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        began = time.monotonic()
        await asyncio.gather(*(one(session) for _ in range(load.streams)))
        seconds = time.monotonic() - began
    if received != load.streams * (load.events + 1):
        raise MeasurementError(f"{received} events came of {load.streams} x {load.events} and [DONE]")
    result = Result(
        streams=load.streams,
        events=received - load.streams,
        seconds=seconds,
        first_median=statistics.median(firsts),
        first_p95=percentile_95(firsts),
        job_median=seconds,
        cpu_seconds=_cpu_seconds(worker) - cpu,
    )
    return Run(result, lags)


def _cpu_seconds(worker: Worker | None) -> float:
    """User and system time of the worker's process so far; 0 without one."""
    if worker is None:
        return 0.0
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
