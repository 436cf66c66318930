"""All measurements, as tables. Run by scripts/bench."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

import uvloop

from benchmarks.measure import Result, directly, load, running_worker, short_jobs
from benchmarks.variants import VARIANTS

STREAMS = (1, 8, 32, 128, 300)
ROUND_TRIPS = (0.0, 0.03, 0.1)
EVENTS = 200
REPEATS = 3  # of the loads that are compared; the median by events a second counts


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=list(PARTS), help="which: all, unless named")
    uvloop.run(measure(parser.parse_args().parts))


async def measure(parts: Sequence[str]) -> None:
    """The parts, one after the other."""
    print(f"{os.cpu_count()} cores; streams of {EVENTS} events, one every 10 ms")
    for part in parts:
        print(f"\n{PARTS[part].__doc__}\n")
        await PARTS[part]()


async def choices() -> None:
    """300 streams and 1, round trip 30 ms: this worker, and with each of its choices reverted."""
    head = (
        "",
        "events/s",
        "first event, median",
        "p95",
        "CPU ms / 1000 events",
        "outputs a job",
        "1 stream: first",
        "job",
    )
    rows: list[tuple[str, ...]] = [head]
    for name in VARIANTS:
        async with running_worker(name, 0.03) as worker:
            many = middle([await load(worker, 300, EVENTS) for _ in range(REPEATS)])
            one = middle([await load(worker, 1, 128) for _ in range(REPEATS)])
            if name == next(iter(VARIANTS)):
                direct = middle([await directly(worker.engine_url, 300, EVENTS) for _ in range(REPEATS)])
                rows.append(("a client straight to the engine", *figures(direct)[:3], "", "", "", ""))
        rows.append((name, *figures(many), milliseconds(one.first_median), f"{one.job_median:.2f} s"))
    table(rows)


async def grid() -> None:
    """This worker over streams and round trips."""
    rows: list[tuple[str, ...]] = [
        (
            "round trip",
            "streams",
            "events/s",
            "of possible",
            "first event, median",
            "p95",
            "CPU ms / 1000 events",
            "outputs a job",
        )
    ]
    for round_trip in ROUND_TRIPS:
        async with running_worker("this worker", round_trip) as worker:
            for streams in STREAMS:
                result = await load(worker, streams, EVENTS)
                share = f"{result.events_a_second / (streams * 100):.0%}"
                rate, *rest = figures(result)
                rows.append((milliseconds(round_trip), str(streams), rate, share, *rest))
    table(rows)


async def rest() -> None:
    """Short jobs, the way to the first job, and memory."""
    rows: list[tuple[str, ...]] = [("", "")]
    async with running_worker("this worker", 0.03, {"MAX_CONCURRENCY": "8"}) as worker:
        seconds = await short_jobs(worker, 64, 0.2)
        rows.append(("64 jobs of 0.2 s over 8 slots, at the least 1.60 s", f"{seconds:.2f} s"))
        rows.append(("engine ready to first poll for a job", milliseconds(worker.ready_to_take_seconds)))
    async with running_worker("this worker", 0.0) as worker:
        one = middle([await load(worker, 1, 20) for _ in range(5)])
        rows.append(("first event of one stream, no round trip", milliseconds(one.first_median)))
        rows.append(("memory with 1 stream", f"{one.memory_mib:.0f} MiB"))
        for _ in range(3):
            many = await load(worker, 300, EVENTS)
        rows.append(("memory after 3 times 300 streams", f"{many.memory_mib:.0f} MiB"))
    table(rows)


PARTS = {"choices": choices, "grid": grid, "rest": rest}


def middle(results: list[Result]) -> Result:
    """The one with the median rate."""
    rate = statistics.median_low(result.events_a_second for result in results)
    return next(result for result in results if result.events_a_second == rate)


def figures(result: Result) -> tuple[str, str, str, str, str]:
    """Rate, first event (median and p95), CPU, outputs."""
    return (
        f"{result.events_a_second:,.0f}",
        milliseconds(result.first_median),
        milliseconds(result.first_p95),
        f"{result.cpu_ms_a_thousand:.0f}",
        f"{result.outputs_a_job:.1f}",
    )


def milliseconds(seconds: float) -> str:
    """Seconds as whole milliseconds."""
    return f"{seconds * 1000:.0f} ms"


def table(rows: list[tuple[str, ...]]) -> None:
    """Print rows as Markdown, the first of them the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


if __name__ == "__main__":
    main()
