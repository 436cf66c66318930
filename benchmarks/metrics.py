"""What counting costs: the same load on one worker, with its meters and job records and without them, in turn.

Run as a program, it is the worker with a switch: SIGUSR2 turns counting off, and on again. One process for both, as two
processes with the same code differ by more than counting costs. Each load proves by the metrics page which it was.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

import handler
from benchmarks.measure import MeasurementError, Result, Worker, load, running_worker
from benchmarks.report import Table
from common.job_record import JobRecord
from common.meters import Counter, Gauge, Histogram
from gateway.usage import Watch
from scripts.worker_process import free_port

STREAMS, EVENTS, INTERVAL_SECONDS = 300, 60, 0.1
ROUND_TRIP = 0.03
PAIRS = 6
SETTLE_SECONDS = 0.5  # a job ends in the worker when the answer to its result has come back
ON, OFF = "with counting", "without"

COUNTING: tuple[tuple[type, str], ...] = (
    (Counter, "add"),
    (Gauge, "add"),
    (Gauge, "set"),
    (Histogram, "observe"),
    (JobRecord, "end"),
    (Watch, "events"),
    (Watch, "end_of_events"),
)
"""Everything that a job's line, the minute's line and the metrics page cost while a stream runs."""

HEAD = ("300 streams x 10 events/s", "CPU of a core, median", "lowest", "highest")


async def metrics() -> Table:
    """300 streams with and without counting, in turn: the CPU time of the worker."""
    port = str(free_port())
    program = ("benchmarks.metrics",)
    runs: dict[str, list[Result]] = {ON: [], OFF: []}
    async with running_worker(program, ROUND_TRIP, {"METRICS_PORT": port, "MAX_CONCURRENCY": str(STREAMS)}) as worker:
        await load(worker, STREAMS, EVENTS // 3, INTERVAL_SECONDS)  # warms up
        await asyncio.sleep(SETTLE_SECONDS)
        is_on = True
        for number in range(PAIRS):
            for name in (ON, OFF) if number % 2 == 0 else (OFF, ON):  # so that a drift hits both
                if (name == ON) != is_on:
                    worker.process.send_signal(signal.SIGUSR2)
                    is_on = not is_on
                runs[name].append(await _proved(worker, port, counted=is_on))
    return _table(runs)


async def _proved(worker: Worker, port: str, *, counted: bool) -> Result:
    """One load. Raises MeasurementError if its jobs are counted though they should not be, or the other way round."""
    before = await jobs_counted(port)
    result = await load(worker, STREAMS, EVENTS, INTERVAL_SECONDS)
    await asyncio.sleep(SETTLE_SECONDS)
    found, expected = await jobs_counted(port) - before, STREAMS * counted
    if found != expected:
        raise MeasurementError(f"{found:.0f} jobs were counted, not {expected}")
    return result


async def jobs_counted(port: str) -> float:
    """How many jobs have ended, as the worker's metrics page says."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        page = await response.text()
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == "worker_jobs_total")


def _table(runs: dict[str, list[Result]]) -> Table:
    shares = {name: [run.cpu_seconds / run.seconds for run in of_name] for name, of_name in runs.items()}
    pairs = list(zip(shares[ON], shares[OFF], strict=True))
    rows = [(name, *_spread(values, 1)) for name, values in shares.items()]
    rows.append(("difference, by pair", *_spread([on - off for on, off in pairs], 2)))
    rows.append(("ratio, by pair", *(f"{value:.3f}" for value in _three([on / off for on, off in pairs]))))
    return Table(HEAD, rows, [(name, run) for name, of_name in runs.items() for run in of_name])


def _spread(shares: list[float], digits: int) -> tuple[str, ...]:
    return tuple(f"{share:.{digits}%}" for share in _three(shares))


def _three(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what counts."""


def main() -> None:
    """`python handler.py`, with the switch."""
    ours = [(place, name, getattr(place, name)) for place, name in COUNTING]
    is_on = True

    def switch(*_: Any) -> None:
        nonlocal is_on
        is_on = not is_on
        for place, name, function in ours:
            setattr(place, name, function if is_on else _nothing)

    signal.signal(signal.SIGUSR2, switch)
    os.environ.setdefault("LOG_FORMAT", "json")
    handler.main()


if __name__ == "__main__":
    main()
