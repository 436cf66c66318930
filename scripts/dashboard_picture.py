"""docs/dashboard.png: the dashboard's panels, drawn by matplotlib from what a Prometheus answers to their queries.

    .venv/bin/python -m scripts.dashboard_picture http://127.0.0.1:9090

asks it for the last fifteen minutes. `scripts.dashboard_run` makes a run and draws that. The panels with their places,
units and queries are those of the dashboard's file; the look is matplotlib's.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from scripts.dashboard import COLUMNS, dashboard
from scripts.worker_process import REPOSITORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = REPOSITORY / "docs" / "dashboard.png"
MINUTES = 15.0
STEP_SECONDS = 5.0  # Prometheus' own pace, observe/prometheus.yml
RATE_SECONDS = 4 * STEP_SECONDS  # Grafana's $__rate_interval is four times that

COLUMN_PIXELS, UNIT_PIXELS, GAP_PIXELS, DPI = 50, 21, 4, 100
GROUND, PANEL, EDGE, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2a2d33", "#2c2f36", "#d5d6da", "#8e9097"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#37872d")
NAMED_COLOURS = {"green": "#73bf69", "yellow": "#f2cc0c", "blue": "#5794f2", "orange": "#ff9830", "red": "#f2495c"}
MOST_TICKS = 4


@dataclass(frozen=True)
class Series:
    """One line of a panel: its name in the legend, and its values by time (seconds since the epoch).

    Where Prometheus has no value for a step there is NaN, so that the line is broken there.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """Its newest value."""
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


@dataclass(frozen=True)
class Span:
    """The time that a picture shows, in seconds since the epoch."""

    begin: float
    end: float

    def steps(self) -> list[float]:
        """The times at which each query is answered."""
        count = int((self.end - self.begin) / STEP_SECONDS)
        return [self.begin + number * STEP_SECONDS for number in range(count + 1)]

    def filled_in(self, query: str) -> str:
        """A query with values for Grafana's variables."""
        seconds = {"$__rate_interval": RATE_SECONDS, "$__range": self.end - self.begin}
        for name, value in seconds.items():
            query = query.replace(name, f"{value:.0f}s")
        return query


async def series_of(client: httpx.AsyncClient, target: dict[str, Any], span: Span) -> list[Series]:
    """What one query of a panel gives: at the end of the span if it is an instant query, else at each step.

    Raises httpx.HTTPStatusError for a query that Prometheus does not understand.
    """
    query = {"query": span.filled_in(target["expr"])}
    if target.get("instant"):
        path, query = "/api/v1/query", query | {"time": f"{span.end}"}
    else:
        steps = {"start": f"{span.begin}", "end": f"{span.end}", "step": f"{STEP_SECONDS:g}"}
        path, query = "/api/v1/query_range", query | steps
    answer = (await client.get(path, params=query)).raise_for_status().json()
    return list(_series_in(answer["data"]["result"], target["legendFormat"], span))


def _series_in(results: Sequence[dict[str, Any]], legend: str, span: Span) -> Iterator[Series]:
    for result in sorted(results, key=lambda result: sorted(result["metric"].items())):
        points = result["values"] if "values" in result else [result["value"]]
        found = {round((at - span.begin) / STEP_SECONDS): float(value) for at, value in points}
        times = span.steps() if "values" in result else [span.end]
        values = found.values() if "value" in result else (found.get(step, math.nan) for step in range(len(times)))
        yield Series(named(legend, result["metric"]), tuple(times), tuple(values))


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name, by Grafana's template for it."""
    if legend == "__auto":
        return ""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def formatted(value: float, unit: str) -> str:
    """A value as its panel's unit has it (Grafana's names of units), in few characters."""
    if math.isnan(value):
        return "–"
    match unit:
        case "percentunit":
            return f"{_short(value * 100)} %"
        case "bytes":
            return f"{_short(value / 2**20)} MiB"
        case "reqps":
            return f"{_short(value)}/s"
        case "s" if value >= 120:
            return f"{_short(value / 60)} min"
        case "s" if 0 < value < 1:
            return f"{_short(value * 1000)} ms"
        case "s":
            return f"{_short(value)} s"
    return _short(value)


def _short(value: float) -> str:
    """Three digits, without zeros at the end."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


async def ask(url: str, span: Span) -> list[list[Series]]:
    """For each panel of the dashboard, in its order, the series that its queries give; none for the titles of rows."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        return [
            [series for target in panel.get("targets", ()) for series in await series_of(client, target, span)]
            for panel in dashboard()["panels"]
        ]


def draw(answers: Sequence[Sequence[Series]], span: Span) -> Figure:
    """The dashboard as a picture. answers: as `ask` gives them."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    panels = dashboard()["panels"]
    units = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = COLUMNS * COLUMN_PIXELS, units * UNIT_PIXELS
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=GROUND)
    for panel, series in zip(panels, answers, strict=True):
        at = panel["gridPos"]
        box = _Box(at["x"] * COLUMN_PIXELS, at["y"] * UNIT_PIXELS, at["w"] * COLUMN_PIXELS, at["h"] * UNIT_PIXELS)
        if panel["type"] == "row":
            x, y = box.within(width, height, left=10, bottom=box.height / 2)[:2]
            figure.text(x, y, panel["title"], color=TEXT, fontsize=11, weight="bold", va="center")
        else:
            _Panel(figure, box.inset(GAP_PIXELS), (width, height), panel, series).draw(span)
    return figure


@dataclass(frozen=True)
class _Box:
    """A rectangle in pixels, from the top left."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, pixels: float) -> _Box:
        return _Box(self.x + pixels, self.y + pixels, self.width - 2 * pixels, self.height - 2 * pixels)

    def within(
        self, width: float, height: float, *, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0
    ) -> tuple[float, float, float, float]:
        """Left, bottom, width and height as shares of a picture, without these margins. (matplotlib's y goes up.)"""
        return (
            (self.x + left) / width,
            1 - (self.y + self.height - bottom) / height,
            (self.width - left - right) / width,
            (self.height - top - bottom) / height,
        )


class _Panel:
    """One panel: a rectangle with a title, and in it a diagram, numbers or bars."""

    def __init__(
        self,
        figure: Figure,
        box: _Box,
        size: tuple[float, float],
        panel: dict[str, Any],
        series: Sequence[Series],
    ) -> None:
        from matplotlib.patches import FancyBboxPatch

        self._figure, self._box, self._size, self._series = figure, box, size, series
        self._panel, self._defaults = panel, panel["fieldConfig"]["defaults"]
        self._unit = self._defaults["unit"]
        x, y, width, height = box.within(*size)
        # The rounding is in shares of the picture's width; the aspect makes it as round in height.
        style, aspect = f"round,pad=0,rounding_size={4 / size[0]}", size[0] / size[1]
        figure.add_artist(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle=style,
                mutation_aspect=aspect,
                facecolor=PANEL,
                edgecolor=EDGE,
                linewidth=0.8,
                zorder=-1,
            )
        )
        x, y = box.within(*size, left=12, bottom=box.height - 15)[:2]
        figure.text(x, y, panel["title"], color=TEXT, fontsize=9, va="center")

    def draw(self, span: Span) -> None:
        if not self._series:
            x, y, width, height = self._box.within(*self._size, top=24)
            self._figure.text(x + width / 2, y + height / 2, "none", color=FAINT, fontsize=11, ha="center", va="center")
            return
        match self._panel["type"]:
            case "stat":
                self._draw_numbers()
            case "bargauge":
                self._draw_bars()
            case _:
                self._draw_lines(span)

    def _axes(self, **margins: float) -> Axes:
        axes = self._figure.add_axes(self._box.within(*self._size, **margins), facecolor="none")
        axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def _draw_numbers(self) -> None:
        """The newest value of each series; its name where the name is the answer."""
        x, y, width, height = self._box.within(*self._size, top=26, bottom=8)
        shows_names = self._panel["options"]["textMode"] == "name"
        for number, series in enumerate(self._series):
            middle = x + width * (number + 0.5) / len(self._series)
            value = round(series.last, self._defaults.get("decimals", 9))
            text = series.name if shows_names else formatted(value, self._unit)
            is_captioned = not shows_names and series.name
            self._figure.text(
                middle,
                y + height * (0.6 if is_captioned else 0.5),
                text,
                color=COLOURS[0],
                fontsize=24,
                ha="center",
                va="center",
            )
            if is_captioned:
                self._figure.text(
                    middle, y + height * 0.2, series.name, color=FAINT, fontsize=8.5, ha="center", va="center"
                )

    def _draw_bars(self) -> None:
        """The newest value of each series as a bar, the longest first."""
        axes = self._axes(left=118, top=30, right=62, bottom=8)
        ordered = sorted(self._series, key=lambda series: series.last)
        axes.barh(range(len(ordered)), [series.last for series in ordered], color=COLOURS[2], height=0.62)
        axes.set_yticks(range(len(ordered)), labels=[series.name.replace("_", " ") for series in ordered])
        axes.tick_params(axis="y", colors=TEXT)
        axes.set_xticks([])
        for place, series in enumerate(ordered):
            text, at = formatted(series.last, self._unit), (series.last, place)
            axes.annotate(
                text, at, xytext=(5, 0), textcoords="offset points", color=TEXT, fontsize=7.5, va="center_baseline"
            )

    def _draw_lines(self, span: Span) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        columns = self._columns_of_legend()
        rows = math.ceil(len(self._series) / columns)
        axes = self._axes(left=58, top=30, right=24, bottom=28 + 14 * rows)
        minutes, scale = [(at - span.begin) / 60 for at in span.steps()], 2**20 if self._unit == "bytes" else 1
        below, lines = [0.0] * len(minutes), []
        for series, colour in zip(self._series, self._colours(), strict=True):
            heights = [value / scale for value in series.values]
            if "stacking" in self._defaults["custom"]:
                heights = [base + (0.0 if math.isnan(own) else own) for base, own in zip(below, heights, strict=True)]
                axes.fill_between(minutes, below, heights, color=colour, alpha=0.35, linewidth=0)
                below = heights
            lines += axes.plot(minutes, heights, color=colour, linewidth=1.2, label=series.name or "now")
        for depth, line in enumerate(lines):
            line.set_zorder(3 - depth / len(lines))  # of lines at the same height, the first is seen
        heights = [value / scale for series in self._series for value in series.values if value > 0]
        if "scaleDistribution" in self._defaults["custom"] and heights:
            axes.set_yscale("log")
            lowest = math.floor(math.log10(min(heights)))
            axes.set_ylim(10**lowest, 10 ** max(lowest + 1, math.ceil(math.log10(max(heights)))))
            axes.minorticks_off()
        else:
            axes.set_ylim(0, self._defaults.get("max", axes.dataLim.y1 * 1.08 if heights else 1))
            axes.yaxis.set_major_locator(MaxNLocator(MOST_TICKS))
        axes.set_xlim(0, minutes[-1])
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value * scale, self._unit)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} min"))
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -14 / (self._box.height - 58 - 14 * rows)),
            ncols=columns,
            frameon=False,
            fontsize=7.5,
            labelcolor=TEXT,
            handlelength=1.0,
            columnspacing=1.2,
            handletextpad=0.5,
            borderaxespad=0.3,
        )

    def _columns_of_legend(self) -> int:
        """How many names fit beside each other; a character of this size is 5 pixels wide, and before it is a line."""
        longest = max(len(series.name) for series in self._series)
        return max(1, int((self._box.width - 60) // (34 + 5 * longest)))

    def _colours(self) -> list[str]:
        """One for each series: what the dashboard says for its name, else the next one of the palette."""
        fixed = {
            override["matcher"]["options"]: NAMED_COLOURS[override["properties"][0]["value"]["fixedColor"]]
            for override in self._panel["fieldConfig"]["overrides"]
        }
        return [fixed.get(series.name, COLOURS[place % len(COLOURS)]) for place, series in enumerate(self._series)]


def save(figure: Figure, path: Path = FILE) -> None:
    """Write the picture, with a palette of 256 colours: half the size, and nobody sees it."""
    from io import BytesIO

    from PIL import Image

    whole = BytesIO()
    figure.savefig(whole, format="png", dpi=DPI)
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    """Ask and draw."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dashboard_picture", description=__doc__.splitlines()[0])
    parser.add_argument("url", help="where Prometheus is, such as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how far back the picture goes (%(default)g)")
    parser.add_argument("--file", type=Path, default=FILE)
    arguments = parser.parse_args()
    now = time.time()
    span = Span(now - arguments.minutes * 60, now)
    save(draw(asyncio.run(ask(arguments.url, span)), span), arguments.file)
    print(f"wrote {arguments.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
