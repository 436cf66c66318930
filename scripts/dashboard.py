"""observe/grafana/dashboards/worker.json: the dashboard's panels, in the order of an operator's questions.

`python -m scripts.dashboard` writes the file; a test compares the two, and each query's names with the metrics page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "observe" / "grafana" / "dashboards" / "worker.json"

COLUMNS = 24  # of Grafana's grid
ROW_HEIGHT, PANEL_HEIGHT = 1, 8


@dataclass(frozen=True)
class Panel:
    """One diagram.

    queries: PromQL by its legend. unit: Grafana's name of it. share_of_row: how many fit in a row. colours: Grafana's
    names of them by the names of series, where they mean something. is_logarithmic: for what is milliseconds on most
    days and minutes on bad ones. most: the upper end.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    share_of_row: int = 3
    stacked: bool = False
    is_logarithmic: bool = False
    most: float | None = None
    decimals: int | None = None
    colours: dict[str, str] = field(default_factory=dict)


def _quantile(share: float, family: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({family}_bucket[$__rate_interval])))"


def _quantiles(title: str, family: str) -> Panel:
    queries = {f"p{share * 100:g}": _quantile(share, family) for share in (0.5, 0.95, 0.99)}
    return Panel(title, queries, "s", is_logarithmic=True)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it up?": (
        Panel("Engine", {"{{state}}": "worker_engine_state == 1"}, kind="stat"),
        Panel("In this state for", {"": "time() - worker_engine_state_since_timestamp_seconds"}, "s", "stat"),
        Panel("Restarts", {"{{cause}}": "increase(worker_engine_restarts_total[$__range])"}, kind="stat", decimals=0),
        Panel(
            "Jobs a second",
            {"{{outcome}}": "sum by (outcome) (rate(worker_jobs_total[$__rate_interval]))"},
            "reqps",
            share_of_row=2,
            stacked=True,
            colours={"completed": "green", "cancelled": "yellow", "undelivered": "orange", "failed": "red"},
        ),
        Panel(
            "Calls to the platform that failed",
            {
                "{{kind}} {{status}}": 'sum by (kind, status) (rate(worker_platform_calls_total{status!="ok"}'
                "[$__rate_interval]))",
                "{{kind}} sent again": "sum by (kind) (rate(worker_platform_retries_total[$__rate_interval]))",
            },
            "reqps",
            share_of_row=2,
        ),
    ),
    "Is it fast?": (
        _quantiles("First token", "gen_ai_server_time_to_first_token_seconds"),
        _quantiles("Between outputs", "worker_time_between_outputs_seconds"),
        _quantiles("Whole job", "gen_ai_server_request_duration_seconds"),
        _quantiles("Wait for the engine", "worker_job_wait_seconds"),
        _quantiles("Event loop late by", "worker_event_loop_lag_seconds"),
        Panel("Phases of the last start", {"{{phase}}": "worker_start_phase_seconds"}, "s", "bargauge"),
    ),
    "Is it full?": (
        Panel(
            "Jobs",
            {
                "in flight": "sum(worker_jobs_in_flight)",
                "waiting for the engine": "sum(worker_jobs_waiting)",
                "capacity": "sum(worker_capacity_jobs)",
            },
        ),
        Panel("What limits the capacity", {"{{limit}}": "worker_capacity_limit == 1"}, kind="stat"),
        Panel("Memory of the worker", {"resident": "process_resident_memory_bytes"}, "bytes"),
    ),
    "What does it cost?": (
        Panel(
            "Tokens a second",
            {
                "{{gen_ai_token_type}}": "sum by (gen_ai_token_type) (rate(worker_tokens_total[$__rate_interval]))",
            },
        ),
        Panel(
            "Input that was cached",
            {
                "share": 'sum(rate(worker_tokens_total{gen_ai_token_type="input_cached"}[$__rate_interval])) / '
                'sum(rate(worker_tokens_total{gen_ai_token_type="input"}[$__rate_interval]))'
            },
            "percentunit",
            most=1,
        ),
        Panel(
            "Processor time of the worker",
            {"cores": "rate(process_cpu_seconds_total[$__rate_interval])"},
            "percentunit",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    return {
        "uid": "glm-flash-worker",
        "title": "GLM-4.7-Flash worker",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "panels": _placed(),
    }


def _placed() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": ROW_HEIGHT}})
        y, x = y + ROW_HEIGHT, 0
        for panel in row:
            width = COLUMNS // panel.share_of_row
            if x + width > COLUMNS:
                x, y = 0, y + PANEL_HEIGHT
            panels.append(_drawn(panel) | {"gridPos": {"x": x, "y": y, "w": width, "h": PANEL_HEIGHT}})
            x += width
        y += PANEL_HEIGHT
    return [panel | {"id": number} for number, panel in enumerate(panels, start=1)]


def _drawn(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    # A number or a bar is what holds now: over the whole range, every state that the engine has been in would be one.
    when = {} if panel.kind == "timeseries" else {"instant": True, "range": False}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": source,
            "expr": query,
            "legendFormat": legend or "__auto",
            **when,
        }
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    custom: dict[str, Any] = {}
    if panel.stacked:
        custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    if panel.is_logarithmic:
        custom = {"scaleDistribution": {"type": "log", "log": 10}}
    limits = {"min": None if panel.is_logarithmic else 0, "max": panel.most, "decimals": panel.decimals}
    given = {name: value for name, value in limits.items() if value is not None}
    drawn: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": source,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": custom, **given},
            "overrides": [_coloured(name, colour) for name, colour in panel.colours.items()],
        },
    }
    if panel.kind == "stat":  # the name of the series is the answer where its value is only 1
        drawn["options"] = {"textMode": "name" if panel.title in ("Engine", "What limits the capacity") else "auto"}
    return drawn


def _coloured(name: str, colour: str) -> dict[str, Any]:
    fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}
    return {"matcher": {"id": "byName", "options": name}, "properties": [fixed]}


def text() -> str:
    """What the file holds."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {FILE.name}\n")
