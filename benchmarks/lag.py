"""How late each event is: from the engine's write of it to the platform's receipt of the post that carries it.

Both ends read the same clock, the machine's monotonic one. The network's own way, half a round trip, is not counted.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.emulated_platform import Job
from benchmarks.measure import MeasurementError, Worker, chat
from benchmarks.tables import percentile

RAMP_SECONDS = 1.0  # in which the streams of a load are started, one after the other
SECONDS = 5.0  # how long each stream runs

SENT = re.compile(rb'sent\\?": ?(\d+\.\d+)')


@dataclass(frozen=True)
class Load:
    """Streams at once, and the events a second of each."""

    streams: int
    rate: int

    def __str__(self) -> str:
        return f"{self.streams} x {self.rate}"


@dataclass(frozen=True)
class Lag:
    """How late events were, in seconds: of all, of each stream's first, of each stream's last. CPU: of one core."""

    streams: int
    rate: int
    p50: float
    p95: float
    p99: float
    first_p95: float
    end_p95: float
    end_worst: float
    cpu: float
    outputs_a_job: float


async def lag(worker: Worker, load: Load) -> Lag:
    """Run a load whose streams tick together; how late its events were."""
    body = chat(int(SECONDS * load.rate), 1 / load.rate) | {"ticks": True}
    cpu, began = worker.cpu_seconds(), time.monotonic()
    jobs = []
    for number in range(load.streams):
        await asyncio.sleep(began + number * RAMP_SECONDS / load.streams - time.monotonic())
        jobs.append(worker.platform.submit(body))
    for job in jobs:
        await job.over.wait()
    seconds, cpu = time.monotonic() - began, worker.cpu_seconds() - cpu
    lags = [lags_of(job, body) for job in jobs]
    everything = [late for of_job in lags for late in of_job]
    ends = [of_job[-1] for of_job in lags]
    return Lag(
        **vars(load),
        p50=statistics.median(everything),
        p95=percentile(everything, 95),
        p99=percentile(everything, 99),
        first_p95=percentile([of_job[0] for of_job in lags], 95),
        end_p95=percentile(ends, 95),
        end_worst=max(ends),
        cpu=cpu / seconds,
        outputs_a_job=statistics.mean(job.outputs for job in jobs),
    )


def lags_of(job: Job, body: dict[str, Any]) -> list[float]:
    """How late each event of a job was. Raises MeasurementError if any is missing."""
    late = [received - float(sent) for received, post in job.receipts for sent in SENT.findall(post)]
    if job.error or len(late) != body["max_tokens"]:
        raise MeasurementError(f"a job went wrong: {len(late)} events, error {job.error}")
    return late
