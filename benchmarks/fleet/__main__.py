"""Real workers over a local RunPod, each with a paced engine, and a scaler that follows RunPod's rules.

Prints who answered what, how long jobs waited for a worker and for their first token, and what is paid. The load is
`burst:96` (jobs at once), `steady:2:60` (two a second for a minute), or a CSV file with the columns `seconds` and, if
you like, `tokens`. Needs no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from benchmarks.fleet.arguments import not_negative, not_negative_whole, picture, positive, whole
from benchmarks.fleet.outcome import SUMMARY, Outcome, by_worker, plot, summary
from benchmarks.fleet.running import FleetError, run_fleet
from benchmarks.fleet.scaling import Endpoint, read_rule
from benchmarks.fleet.traffic import Arrival, TrafficError, read_traffic
from benchmarks.tables import markdown


def main() -> int:
    """Run the fleet once for each MAX_CONCURRENCY; 1 if it does not answer, 2 for a load that is not understood."""
    parser = argparse.ArgumentParser(
        prog="scripts/fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("load", nargs="?", default="burst:96", help="default: %(default)s")
    parser.add_argument("--tokens", type=whole, default=100, help="of an answer: %(default)s")
    parser.add_argument("--seconds", type=positive, default=2.0, help="that an answer of --tokens takes: %(default)s")
    parser.add_argument("--streams", type=whole, default=8, help="that an engine runs at once: %(default)s")
    parser.add_argument("--kv-tokens", type=whole, help="that its KV cache holds; default: more than enough")
    parser.add_argument(
        "--engine",
        choices=("paced", "tiny"),
        default="paced",
        help="tiny: the real SGLang with the tiny GLM, on the CPU",
    )
    parser.add_argument("--rule", default="count:32", help="delay:SECONDS or count:JOBS, RunPod's two: %(default)s")
    parser.add_argument(
        "--least", type=not_negative_whole, default=1, help="workers, ready at the beginning: %(default)s"
    )
    parser.add_argument("--most", type=whole, default=3, help="workers: %(default)s")
    parser.add_argument(
        "--idle", type=not_negative, default=5.0, help="seconds without a job, then it stops: %(default)s"
    )
    parser.add_argument("--cold-start", type=not_negative, default=4.0, help="seconds of a worker's start: %(default)s")
    parser.add_argument(
        "--round-trip", type=not_negative, default=0.03, help="seconds of a platform's call: %(default)s"
    )
    parser.add_argument(
        "--max-concurrency", nargs="+", default=["auto"], metavar="VALUE", help="one run for each: %(default)s"
    )
    parser.add_argument("--plot", type=picture, metavar="FILE.png", help="draw the jobs of each worker over time")
    arguments = parser.parse_args()
    try:
        rule, traffic = read_rule(arguments.rule), read_traffic(arguments.load, tokens=arguments.tokens)
        endpoint = Endpoint(rule, arguments.least, arguments.most, arguments.idle, arguments.cold_start)
    except (TrafficError, ValueError) as error:
        print(f"scripts/fleet: {error}", file=sys.stderr)
        return 2
    try:
        outcomes = asyncio.run(_run(endpoint, traffic, arguments))
    except FleetError as error:
        print(f"scripts/fleet: {error}", file=sys.stderr)
        return 1
    print(markdown(("MAX_CONCURRENCY", *SUMMARY), [(name, *summary(outcome)) for name, outcome in outcomes.items()]))
    if arguments.plot:
        plot({f"MAX_CONCURRENCY={name}": outcome for name, outcome in outcomes.items()}, arguments.plot)
    return 0


async def _run(endpoint: Endpoint, traffic: list[Arrival], arguments: argparse.Namespace) -> dict[str, Outcome]:
    engine = f"{arguments.tokens} tokens in {arguments.seconds:g} s" if arguments.engine == "paced" else "the tiny GLM"
    print(
        f"{os.cpu_count()} cores; {len(traffic)} jobs; engines of {arguments.streams} streams, {engine}; "
        f"{endpoint.least} to {endpoint.most} workers by {endpoint.rule}, started in "
        f"{endpoint.cold_start_seconds:g} s\n",
        flush=True,
    )
    outcomes = {}
    for value in arguments.max_concurrency:
        environment = {"MAX_CONCURRENCY": value, "MAX_RUNNING_REQUESTS": str(arguments.streams)}
        if arguments.kv_tokens:
            environment["MAX_TOTAL_TOKENS"] = str(arguments.kv_tokens)
        outcome = await run_fleet(
            endpoint,
            traffic,
            interval=arguments.seconds / arguments.tokens if arguments.engine == "paced" else None,
            environment=environment,
            round_trip=arguments.round_trip,
        )
        print(f"MAX_CONCURRENCY={value}\n{by_worker(outcome)}\n", flush=True)
        outcomes[value] = outcome
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
