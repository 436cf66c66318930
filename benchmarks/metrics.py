"""What counting costs: one steady load on one worker, with its meters and job records and without them, in turn.

Run as a program, it is the worker with a switch: SIGUSR2 turns counting off, and on again. One process for both, as two
processes with the same code differ by more than counting costs, and a load that does not begin and end in between. Each
stretch of time proves by the metrics page which it was.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

import handler
from benchmarks.measure import PACED, MeasurementError, Worker, chat, complain, running_worker
from benchmarks.report import Table
from common.job_record import JobRecord
from common.meters import Counter, Gauge, Histogram
from common.tasks import cancel
from gateway.usage import Watch
from scripts.worker_process import free_port

STREAMS, EVENTS, INTERVAL_SECONDS = 300, 200, 0.1
STREAM_SECONDS = EVENTS * INTERVAL_SECONDS
ROUND_TRIP = 0.03
PAIRS, STRETCH_SECONDS = 24, 4.0
SETTLE_SECONDS = 0.25  # for the signal to have arrived, and for the page's own work to be over
ON, OFF = "with counting", "without"

COUNTING: tuple[Callable[..., Any], ...] = (
    Counter.add,
    Gauge.add,
    Gauge.set,
    Histogram.observe,
    JobRecord.end,
    Watch.events,
    Watch.end_of_events,
)
"""Everything that a job's line, the minute's line and the metrics page cost while a stream runs."""

HEAD = ("300 streams x 10 events/s", "CPU of a core, median", "lower quartile", "upper quartile")


@dataclass(frozen=True)
class Stretch:
    """Some seconds of the load: what share of a core the worker took."""

    cpu: float


async def metrics() -> Table:
    """300 streams, each followed by another, with and without counting in turn: the CPU time of the worker."""
    port = str(free_port())
    program = ("benchmarks.metrics",)
    async with running_worker(program, ROUND_TRIP, {"METRICS_PORT": port, "MAX_CONCURRENCY": str(STREAMS)}) as worker:
        loading = [asyncio.create_task(_load(worker, number)) for number in range(STREAMS)]
        measuring = asyncio.create_task(_stretches(worker, port))
        try:
            # The loads go on without end: one that is over has failed.
            await asyncio.wait({measuring, *loading}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.gather(*(task for task in (measuring, *loading) if task.done()))
            stretches = await measuring
        finally:
            await cancel(measuring, *loading)
    return table(stretches)


async def _load(worker: Worker, number: int) -> None:
    """One stream after the other; those of different numbers end at different times, as they do in a day's traffic."""
    await asyncio.sleep(number * STREAM_SECONDS / STREAMS)
    while True:
        job = worker.platform.submit(chat(EVENTS, INTERVAL_SECONDS))
        await job.over.wait()
        complain([job], EVENTS, PACED)
        job.receipts.clear()


async def _stretches(worker: Worker, port: str) -> dict[str, list[Stretch]]:
    await asyncio.sleep(STREAM_SECONDS + SETTLE_SECONDS)  # until all run, and some have ended
    stretches: dict[str, list[Stretch]] = {ON: [], OFF: []}
    is_on = True
    for number in range(PAIRS):
        for name in (ON, OFF) if number % 2 == 0 else (OFF, ON):  # so that a drift hits both
            if (name == ON) != is_on:
                worker.process.send_signal(signal.SIGUSR2)
                is_on = not is_on
            stretches[name].append(await _proved(worker, port, counts=is_on))
    return stretches


async def _proved(worker: Worker, port: str, *, counts: bool) -> Stretch:
    """One stretch. Raises MeasurementError if jobs are counted in it though they should not be, or the other way."""
    await asyncio.sleep(SETTLE_SECONDS)
    counted = await jobs_counted(port)
    await asyncio.sleep(SETTLE_SECONDS)
    cpu, began = worker.cpu_seconds(), time.monotonic()
    await asyncio.sleep(STRETCH_SECONDS)
    cpu, seconds = worker.cpu_seconds() - cpu, time.monotonic() - began
    counted = await jobs_counted(port) - counted
    if counts != (counted > 0):
        raise MeasurementError(f"{counted:.0f} jobs were counted {ON if counts else OFF}")
    return Stretch(cpu / seconds)


async def jobs_counted(port: str) -> float:
    """How many jobs have ended, as the worker's metrics page says."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        page = await response.text()
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "worker_jobs_total")


def table(stretches: dict[str, list[Stretch]]) -> Table:
    """The shares of a core in each way, and the differences between neighbours in time, with their mean's error."""
    shares = {name: [stretch.cpu for stretch in of_name] for name, of_name in stretches.items()}
    differences = [on - off for on, off in zip(shares[ON], shares[OFF], strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    rows = [
        *((name, *_quartiles(values, 1)) for name, values in shares.items()),
        ("difference, by pair", *_quartiles(differences, 2)),
        ("their mean, and its standard error", f"{statistics.mean(differences):.2%} ± {error:.2%}", "", ""),
    ]
    return Table(HEAD, rows, [(name, stretch) for name, of_name in stretches.items() for stretch in of_name])


def _quartiles(shares: list[float], digits: int) -> tuple[str, ...]:
    lower, median, upper = statistics.quantiles(shares, n=4, method="inclusive")
    return tuple(f"{share:.{digits}%}" for share in (median, lower, upper))


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what counts."""


def main() -> None:
    """`python handler.py`, with the switch."""
    ours = {function: function.__code__ for function in COUNTING}
    is_on = True

    def switch(*_: Any) -> None:
        """Exchange the code inside the functions: streams that run hold on to the functions themselves."""
        nonlocal is_on
        is_on = not is_on
        for function, code in ours.items():
            function.__code__ = code if is_on else _nothing.__code__

    signal.signal(signal.SIGUSR2, switch)
    os.environ.setdefault("LOG_FORMAT", "json")
    handler.main()


if __name__ == "__main__":
    main()
