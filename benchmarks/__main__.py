"""All measurements, as tables. Run by scripts/bench.

Without names of parts: all of them, in about fifteen minutes. `--write` puts the tables into docs/performance.md and
redraws the plot.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ParamSpec

import uvloop

from benchmarks import report
from benchmarks.lag import Lag, Load
from benchmarks.lag import lag as lag_of
from benchmarks.measure import PACED, TINY, MeasurementError, Result, Worker, directly, load, running_worker, short_jobs
from benchmarks.metrics import metrics
from benchmarks.plain_http import http
from benchmarks.profile import budget
from benchmarks.report import FIGURES, LAG_FIGURES, Table, figures, lag_figures
from benchmarks.serving import serving
from benchmarks.tables import milliseconds
from benchmarks.usual_ways import WAYS
from benchmarks.variants import LAG_VARIANTS, VARIANTS

STREAMS = (1, 8, 32, 128, 300)
TINY_STREAMS = (1, 4, 16)  # the tiny GLM on two cores can do no more
ROUND_TRIP = 0.03
ROUND_TRIPS = (0.0, 0.03, 0.1)
EVENTS = 128
REPEATS = 3  # for what is compared; the result is the median by events a second
SLOW_SECONDS = 3.0  # anything this slow is not repeated: the noise is small compared with the difference

# What a GPU produces: from one conversation to more streams than most can hold.
LOADS = (Load(1, 100), Load(32, 50), Load(64, 30), Load(128, 20), Load(300, 10))
CHOICES_LOADS = (Load(64, 30), Load(300, 10))

THIS_WORKER = ("handler",)
DIRECT = "a client straight to the engine"
OURS = "this worker"
PEER = "aiohttp, as it comes"

Parameters = ParamSpec("Parameters")


def main() -> int:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument(
        "--engine",
        choices=(PACED, TINY),
        default=PACED,
        help="tiny: the real SGLang on the CPU with the tiny GLM, only for the part `streams`",
    )
    parser.add_argument("--write", action="store_true", help="update docs/performance.md, its data and the plot")
    arguments = parser.parse_args()
    if arguments.engine == TINY and arguments.parts not in ([], ["streams"]):
        parser.error(f"--engine {TINY} works only with the part `streams`")
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (known: {', '.join(PARTS)})")
    parts = {name: PARTS[name] for name in arguments.parts or PARTS}
    if arguments.engine == TINY:
        parts = {"tiny": tiny}
    print(f"{os.cpu_count()} cores; streams of {EVENTS} events, one every 10 ms")
    tables: dict[str, Table] = {}
    for name, part in parts.items():
        print(f"\n{name}: {part.__doc__}\n", flush=True)
        try:
            tables[name] = uvloop.run(part())
        except MeasurementError as error:
            print(error, file=sys.stderr)
            return 1
        print(tables[name], flush=True)
    if arguments.write:
        report.write(tables)
    return 0


async def lag() -> Table:
    """How late events are, round trip 30 ms: this worker beside the better one of those as they are usually written."""
    return await lags(tls=False)


async def lag_tls() -> Table:
    """The same over TLS, as a deployed worker reaches its platform."""
    return await lags(tls=True)


async def lags(*, tls: bool) -> Table:
    results: list[tuple[str, Lag]] = []
    programs = {OURS: THIS_WORKER, PEER: ("benchmarks.usual_ways", PEER)}
    for name, program in programs.items():
        async with running_worker(program, ROUND_TRIP, tls=tls) as worker:
            results += [(name, await lag_of(worker, load)) for load in LOADS]
    results.sort(key=lambda pair: pair[1].streams)
    rows = [(str(Load(result.streams, result.rate)), name, *lag_figures(result)) for name, result in results]
    return Table(("streams x events/s", "", *LAG_FIGURES), rows, results)


async def lag_choices() -> Table:
    """How late events are with each choice that concerns them reverted."""
    rows, results = [], []
    for name in LAG_VARIANTS:
        async with running_worker(("benchmarks.variants", name), ROUND_TRIP) as worker:
            for load in CHOICES_LOADS:
                result = await lag_of(worker, load)
                rows.append((str(load), name, *lag_figures(result)))
                results.append((name, result))
    rows.sort(key=lambda row: int(row[0].split()[0]))
    return Table(("streams x events/s", "", *LAG_FIGURES), rows, results)


async def streams() -> Table:
    """1 to 300 streams, round trip 30 ms: this worker, a client straight to the engine, workers as usually written."""
    async with running_worker(THIS_WORKER, ROUND_TRIP) as worker:
        results = await beside_direct(worker, STREAMS)
    for name in WAYS:
        async with running_worker(("benchmarks.usual_ways", name), ROUND_TRIP) as worker:
            for count in STREAMS:
                results.append((name, await repeated(load, worker, count, EVENTS)))
    names = [DIRECT, OURS, *WAYS]
    results.sort(key=lambda pair: (pair[1].streams, names.index(pair[0])))
    rows = [(str(result.streams), name, *figures(result)) for name, result in results]
    return Table(("streams", "", *FIGURES), rows, results)


async def choices() -> Table:
    """300 streams and 1, round trip 30 ms: this worker, as it is and with each of its choices reverted."""
    rows, results = [], []
    for name in VARIANTS:
        async with running_worker(("benchmarks.variants", name), ROUND_TRIP) as worker:
            many = await repeated(load, worker, 300, EVENTS)
            one = await load(worker, 1, EVENTS)
        rows.append((name, *figures(many), milliseconds(one.first_median), f"{one.job_median:.2f} s"))
        results += [(name, many), (name, one)]
    return Table(("", *FIGURES, "1 stream: first", "job"), rows, results)


async def grid() -> Table:
    """This worker over streams and round trips."""
    rows, results = [], []
    for round_trip in ROUND_TRIPS:
        async with running_worker(THIS_WORKER, round_trip) as worker:
            for count in STREAMS:
                result = await load(worker, count, EVENTS)
                share = f"{result.events_a_second / (count * 100):.0%}"
                rate, *rest = figures(result)
                rows.append((milliseconds(round_trip), str(count), rate, share, *rest))
                results.append((f"round trip {milliseconds(round_trip)}", result))
    return Table(("round trip", "streams", FIGURES[0], "of possible", *FIGURES[1:]), rows, results)


async def lengths() -> Table:
    """32 streams, an event every 2 ms, by length of the answer: the cost of an event must not grow with it."""
    rows, results = [], []
    async with running_worker(THIS_WORKER, ROUND_TRIP) as worker:
        for events in (100, 400, 1600, 3200):
            result = await load(worker, 32, events, interval=0.002)
            rows.append((f"{events:,}", f"{result.cpu_ms_a_thousand:.0f}", f"{result.memory_mib:.0f} MiB"))
            results.append((f"{events} events", result))
    return Table(("events a stream", "CPU ms / 1000 events", "memory"), rows, results)


async def rest() -> Table:
    """Short jobs, the time to the first job, and memory."""
    rows = []
    for round_trip in (0.0, ROUND_TRIP):
        async with running_worker(THIS_WORKER, round_trip, {"MAX_CONCURRENCY": "8"}) as worker:
            seconds = await short_jobs(worker, 64, 0.2)
        name = f"64 jobs of 0.2 s over 8 slots, round trip {milliseconds(round_trip)}; at the least 1.60 s"
        rows.append((name, f"{seconds:.2f} s"))
    async with running_worker(THIS_WORKER, 0.0) as worker:
        rows.append(("the worker's start to the engine's", f"{worker.start_to_engine_seconds:.2f} s"))
        rows.append(("engine ready to first poll for a job", milliseconds(worker.ready_to_take_seconds)))
        one = await repeated(load, worker, 1, 20)
        rows.append(("first event of one stream, no round trip", milliseconds(one.first_median)))
        rows.append(("memory with 1 stream", f"{one.memory_mib:.0f} MiB"))
        for _ in range(REPEATS):
            many = await load(worker, 300, EVENTS)
        rows.append((f"memory after {REPEATS} times 300 streams", f"{many.memory_mib:.0f} MiB"))
    return Table(("", ""), rows)


async def event() -> Table:
    """The cost of one event: where a busy worker's CPU time goes, with 300 streams."""
    async with running_worker(THIS_WORKER, ROUND_TRIP) as worker:
        try:
            result, shares = await budget(worker, 300, EVENTS)
        except PermissionError as error:
            return Table(("no profile", ""), [("", str(error))])
    microseconds = result.cpu_ms_a_thousand
    rows = [(name, f"{microseconds * share:.1f}", f"{share:.0%}") for name, share in shares.items()]
    return Table(("", "µs an event", "share"), [*rows, ("all", f"{microseconds:.1f}", "100%")], [("profiled", result)])


async def tiny() -> Table:
    """The real SGLang with the tiny GLM on the CPU, round trip 30 ms: a client straight to it, and this worker."""
    async with running_worker(THIS_WORKER, ROUND_TRIP, engine=TINY) as worker:
        results = await beside_direct(worker, TINY_STREAMS)
    rows = [(str(result.streams), name, *figures(result)) for name, result in results]
    return Table(("streams", "", *FIGURES), rows, results)


PARTS: dict[str, Callable[[], Coroutine[Any, Any, Table]]] = {
    "lag": lag,
    "lag_tls": lag_tls,
    "lag_choices": lag_choices,
    "streams": streams,
    "choices": choices,
    "grid": grid,
    "lengths": lengths,
    "rest": rest,
    "event": event,
    "http": http,
    "metrics": metrics,
    "serving": serving,
}


async def beside_direct(worker: Worker, counts: Iterable[int]) -> list[tuple[str, Result]]:
    """The worker, and a client straight to its engine, in turn."""
    results = []
    for count in counts:
        results.append((DIRECT, await repeated(directly, worker.engine_url, count, EVENTS)))
        results.append((OURS, await repeated(load, worker, count, EVENTS)))
    return results


async def repeated(
    measure: Callable[Parameters, Awaitable[Result]], *arguments: Parameters.args, **named: Parameters.kwargs
) -> Result:
    """The median of a few runs, by events a second; if they are slow, the first."""
    results = [await measure(*arguments, **named)]
    while len(results) < REPEATS and results[0].seconds < SLOW_SECONDS:
        results.append(await measure(*arguments, **named))
    rate = statistics.median_low(result.events_a_second for result in results)
    return next(result for result in results if result.events_a_second == rate)


if __name__ == "__main__":
    sys.exit(main())
