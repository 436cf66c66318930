"""What an endpoint's settings would do with a load: scaler, workers, idle time-out; price and waiting. A simulation.

The load is `burst:96` (jobs at once), `steady:2:60` (two a second for a minute), `days:2:3` (three days with two a
second at noon), or a CSV file with the columns `seconds` and, if you like, `tokens`. The engine is what `scripts/bench
--url URL --json FILE` measured; without --engine, one of equally fast streams.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.arguments import not_negative, not_negative_whole, picture, positive, whole
from benchmarks.fleet.engine_model import EngineModel, EngineModelError
from benchmarks.fleet.outcome import Outcome
from benchmarks.fleet.scaling import Endpoint, read_rule
from benchmarks.fleet.simulation import Simulation, Worker
from benchmarks.fleet.traffic import TrafficError, read_traffic
from benchmarks.tables import markdown, percentile_95

HEAD = (
    "scaler",
    "idle time-out",
    "workers at most",
    "on average",
    "waits, p50",
    "p95",
    "first token, p95",
    "GPU hours",
    "$ a million tokens",
    "meets the goal",
)


@dataclass(frozen=True)
class Choice:
    """One way to set the endpoint, and what came of it."""

    endpoint: Endpoint
    outcome: Outcome
    price: float
    p95_wait: float

    def row(self, goal_seconds: float) -> tuple[str, ...]:
        """Under HEAD."""
        outcome = self.outcome
        return (
            str(self.endpoint.rule),
            f"{self.endpoint.idle_seconds:g} s",
            str(outcome.most_workers()),
            f"{outcome.gpu_seconds / outcome.ended:.1f}",
            f"{statistics.median(outcome.waits()):.2f} s",
            f"{self.p95_wait:.2f} s",
            f"{percentile_95(outcome.firsts()):.2f} s",
            f"{outcome.gpu_seconds / 3600:,.1f}",
            f"{self.price:,.2f}",
            "yes" if self.p95_wait <= goal_seconds else "",
        )


def main() -> int:
    """Simulate every combination; print them, the cheapest first, and which to choose. 2 for what is not understood."""
    parser = argparse.ArgumentParser(
        prog="scripts/plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("load")
    parser.add_argument("--tokens", type=whole, default=500, help="of an answer: %(default)s")
    parser.add_argument("--engine", type=Path, metavar="FILE.json", help="what scripts/bench --url --json wrote")
    parser.add_argument("--rate", type=positive, default=50.0, help="without it: tokens/s of a stream: %(default)s")
    parser.add_argument("--streams", type=whole, default=46, help="that a worker runs at once: %(default)s")
    parser.add_argument("--price", type=not_negative, default=2.69, help="of the GPU, in dollars an hour: %(default)s")
    parser.add_argument(
        "--goal", type=not_negative, default=10.0, help="p95 of the wait for a worker, in s: %(default)s"
    )
    parser.add_argument(
        "--cold-start", type=not_negative, default=90.0, help="seconds of a worker's start: %(default)s"
    )
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="delay:SECONDS, count:JOBS; default: a few of each")
    parser.add_argument(
        "--idle", nargs="+", type=not_negative, default=[5.0, 60.0, 300.0], help="time-outs in s: %(default)s"
    )
    parser.add_argument("--least", type=not_negative_whole, default=0, help="workers: %(default)s")
    parser.add_argument("--most", type=whole, default=20, help="workers: %(default)s")
    parser.add_argument("--plot", type=picture, metavar="FILE.png", help="draw price against waiting")
    arguments = parser.parse_args()
    try:
        engine = EngineModel.read(arguments.engine) if arguments.engine else EngineModel.steady(arguments.rate)
        traffic = read_traffic(arguments.load, tokens=arguments.tokens)
        rules = [read_rule(text) for text in arguments.rules or default_rules(arguments.streams)]
        endpoints = [
            Endpoint(rule, arguments.least, arguments.most, idle, arguments.cold_start)
            for rule, idle in itertools.product(rules, arguments.idle)
        ]
    except (TrafficError, EngineModelError, ValueError) as error:
        print(f"scripts/plan: {error}", file=sys.stderr)
        return 2
    worker = Worker.taking(engine, arguments.streams)
    choices = []
    for endpoint in endpoints:
        outcome = Simulation(endpoint, worker, traffic).outcome()
        choices.append(Choice(endpoint, outcome, outcome.price(arguments.price), percentile_95(outcome.waits())))
    choices.sort(key=lambda choice: choice.price)
    print(f"{len(traffic):,} jobs, {sum(arrival.tokens for arrival in traffic):,} tokens\n")
    print(markdown(HEAD, [choice.row(arguments.goal) for choice in choices]))
    print(f"\n{advice(choices, arguments.goal)}")
    if arguments.plot:
        plot_choices(choices, arguments.goal, arguments.plot)
    return 0


def default_rules(streams: int) -> list[str]:
    """Request counts of a quarter, two thirds and all of what a worker runs, and RunPod's default queue delay."""
    counts = dict.fromkeys(max(math.ceil(streams * share), 1) for share in (1 / 4, 2 / 3, 1))
    return [*(f"count:{count}" for count in counts), "delay:4"]


def advice(choices: Sequence[Choice], goal_seconds: float) -> str:
    """One sentence: the cheapest that meets the goal, else the one that waits least. choices: the cheapest first."""
    good = next((choice for choice in choices if choice.p95_wait <= goal_seconds), None)
    best = good or min(choices, key=lambda choice: choice.p95_wait)
    what = "the cheapest that meets the goal" if good else "none meets the goal; the one that waits least"
    most = best.outcome.most_workers()
    return (
        f"{what}: {best.endpoint.rule}, idle time-out {best.endpoint.idle_seconds:g} s, up to "
        f"{most} worker{'s' if most > 1 else ''}: ${best.price:,.2f} a million tokens, p95 wait {best.p95_wait:.2f} s"
    )


def plot_choices(choices: Sequence[Choice], goal_seconds: float, path: Path) -> None:
    """Draw the price of a million tokens against the p95 of waiting, a line for each rule."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    rules = sorted({str(choice.endpoint.rule) for choice in choices}, key=lambda rule: (len(rule), rule))
    for rule in rules:
        mine = sorted(
            (choice for choice in choices if str(choice.endpoint.rule) == rule),
            key=lambda choice: choice.endpoint.idle_seconds,
        )
        axes.plot([c.p95_wait for c in mine], [c.price for c in mine], marker="o", markersize=4, label=rule)
        for choice in mine:
            text = f"{choice.endpoint.idle_seconds:g} s"
            where = (choice.p95_wait, choice.price)
            axes.annotate(text, where, xytext=(4, 4), textcoords="offset points", fontsize="x-small")
    axes.axvline(goal_seconds, color="black", linewidth=1, linestyle="--", label="the goal")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.xaxis.set_major_formatter("{x:g}")
    longest = max(goal_seconds, *(choice.p95_wait for choice in choices))
    axes.set(xlabel="wait for a worker, p95 (s); at each point: the idle time-out", ylabel="dollars a million tokens")
    axes.set(xlim=(-0.2, 2 * longest), ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
