"""The results of a run: tables on the terminal, and in docs/performance.md with the plot and its data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.lag import Lag, Load
from benchmarks.measure import Result
from benchmarks.tables import markdown, milliseconds
from scripts.worker_process import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "performance.md"
DATA = REPOSITORY / "docs" / "performance.json"
PLOT = REPOSITORY / "docs" / "performance.png"
LAG_PLOT = REPOSITORY / "docs" / "lag.png"


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `results`: what they were made from (Result or Lag), each with its row's name."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    results: Sequence[tuple[str, Any]] = ()

    def __str__(self) -> str:
        """As Markdown."""
        return markdown(self.head, self.rows)


def figures(result: Result) -> tuple[str, ...]:
    """Rate, first event (median and p95), CPU and outputs, under FIGURES."""
    return (
        f"{result.events_a_second:,.0f}",
        milliseconds(result.first_median),
        milliseconds(result.first_p95),
        f"{result.cpu_ms_a_thousand:.0f}" if result.cpu_seconds else "",
        f"{result.outputs_a_job:.1f}" if result.outputs_a_job else "",
    )


FIGURES = ("events/s", "first event, median", "p95", "CPU ms / 1000 events", "outputs a job")


def lag_figures(result: Lag) -> tuple[str, ...]:
    """How late events are, and what that costs, under LAG_FIGURES."""
    late = (result.p50, result.p95, result.p99, result.first_p95, result.end_p95, result.end_worst)
    return (*map(milliseconds, late), f"{result.cpu:.0%}", f"{result.outputs_a_job:.0f}")


LAG_FIGURES = ("p50", "p95", "p99", "first, p95", "end, p95", "worst end", "CPU of a core", "outputs a job")


def write(tables: dict[str, Table]) -> None:
    """Put each table in its place in the document, between `<!-- name -->` and `<!-- end -->`; update data and plot.

    Raises LookupError if a table has no place.
    """
    text = DOCUMENT.read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", "<!-- end -->"
        place = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if not place.search(text):
            raise LookupError(f"{DOCUMENT.name} has no {begin}")
        text = place.sub(lambda _, table=table, begin=begin, end=end: f"{begin}\n{table}\n{end}", text)  # type: ignore[misc]
        data[name] = [{"what": what, **_rounded(asdict(result))} for what, result in table.results]
    DOCUMENT.write_text(text, encoding="utf-8")
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if "streams" in tables:
        plot(tables["streams"], PLOT)
    if "lag" in tables:
        plot_lag(tables["lag"], LAG_PLOT)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def plot(table: Table, path: Path) -> None:
    """Plot events a second and the first event's p95 against the number of streams."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (rate, first) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in dict.fromkeys(what for what, _ in table.results):
        results = [result for what, result in table.results if what == name]
        counts = [result.streams for result in results]
        rate.plot(counts, [result.events_a_second for result in results], marker="o", markersize=4, label=name)
        first.plot(counts, [result.first_p95 * 1000 for result in results], marker="o", markersize=4)
    rate.set(xscale="log", ylabel="events/s")
    first.set(xscale="log", yscale="log", ylabel="first event, p95 (ms)")
    ticks = sorted({result.streams for _, result in table.results})
    for axes in (rate, first):
        axes.set(xlabel="streams at once")
        axes.set_xticks(ticks, labels=[str(count) for count in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    rate.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def plot_lag(table: Table, path: Path) -> None:
    """Plot how late events are, median and p95, and what that costs, for each load."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    results: Sequence[tuple[str, Lag]] = table.results
    loads = list(dict.fromkeys(str(Load(result.streams, result.rate)) for _, result in results))
    names = list(dict.fromkeys(what for what, _ in results))
    figure, (late, cost) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        of_name = [result for what, result in results if what == name]
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(of_name))]
        bars = late.bar(places, [result.p95 * 1000 for result in of_name], width, alpha=0.45)
        colour = bars.patches[0].get_facecolor()[:3]
        late.bar(places, [result.p50 * 1000 for result in of_name], width, color=colour, label=name)
        cost.bar(places, [result.cpu * 100 for result in of_name], width, color=colour)
    late.set(ylabel="lateness of an event: median, p95 (ms)")
    cost.set(ylabel="CPU (% of a core)")
    for axes in (late, cost):
        axes.set(xlabel="streams x events/s")
        axes.set_xticks(range(len(loads)), labels=loads)
        axes.grid(axis="y", alpha=0.3)
    late.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)
