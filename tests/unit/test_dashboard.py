"""The dashboard that compose provisions: every name and label in its queries is one that the worker exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import meters
from common.meters import METERS, Counter, Histogram
from scripts import dashboard

REPOSITORY = Path(__file__).parents[2]
FUNCTIONS = {"histogram_quantile", "sum", "rate", "increase", "by", "time"}
_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}  # prometheus_client's ProcessCollector


def exported() -> dict[str, set[str]]:
    """Each name on the metrics page that a query can ask for, and its labels."""
    names: dict[str, set[str]] = {name: set() for name in _PROCESS}
    for meter in METERS:
        labels = set(meter.labels)
        if isinstance(meter, Counter):
            names[f"{meter.name}_total"] = labels
        elif isinstance(meter, Histogram):
            names |= {
                f"{meter.name}_bucket": labels | {"le"},
                f"{meter.name}_count": labels,
                f"{meter.name}_sum": labels,
            }
        else:
            names[meter.name] = labels
    return names


def queries() -> list[tuple[str, str]]:
    panels = dashboard.dashboard()["panels"]
    return [(target["expr"], target["legendFormat"]) for panel in panels for target in panel.get("targets", [])]


def names_in(query: str) -> set[str]:
    without = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", "", query)
    return set(re.findall(r"[a-z_]{2,}", without)) - FUNCTIONS


def labels_in(query: str, legend: str) -> set[str]:
    grouped = re.findall(r"by \(([^)]*)\)", query)
    matched = re.findall(r"[{,]\s*([a-z_]+)\s*(?:=|!=|=~|!~)", query)
    return {
        *re.findall(r"\{\{([a-z_]+)\}\}", legend),
        *matched,
        *(one.strip() for group in grouped for one in group.split(",")),
    }


@pytest.mark.parametrize(("query", "legend"), queries())
def test_every_name_and_label_of_a_query_is_exported(query: str, legend: str) -> None:
    names, known = names_in(query), exported()
    assert names, query
    assert names <= set(known), query
    labels = set().union(*(known[name] for name in names))
    assert labels_in(query, legend) <= labels, query


def test_every_family_but_the_replays_is_on_the_dashboard() -> None:
    shown = " ".join(query for query, _ in queries())
    missing = [meter.name for meter in METERS if meter.name not in shown]
    assert missing == [meters.REPLAYS.name]


def test_file_is_what_the_script_writes() -> None:
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.text(), "run python -m scripts.dashboard"


def test_panels_ask_the_questions_in_order_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = dashboard.dashboard()["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Is it up?", "Is it fast?", "Is it full?", "What does it cost?"]
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not places & mine, panel["title"]
        places |= mine


def test_numbers_and_bars_show_what_holds_now_and_diagrams_what_was() -> None:
    for panel in dashboard.dashboard()["panels"]:
        for target in panel.get("targets", []):
            assert target.get("instant", False) == (panel["type"] in ("stat", "bargauge")), panel["title"]


def test_provisioned_files_lead_from_grafana_to_the_worker() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
    services = {
        name: service for name, service in compose["services"].items() if "observe" in service.get("profiles", [])
    }
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), "a pinned release"
        for volume in service["volumes"]:
            assert (REPOSITORY / volume.split(":")[0]).exists(), volume
    config = yaml.safe_load((REPOSITORY / "observe/prometheus.yml").read_text(encoding="utf-8"))
    [job] = config["scrape_configs"]
    targets = {target.split(":")[0] for static in job["static_configs"] for target in static["targets"]}
    assert targets <= set(compose["services"])
    sources = REPOSITORY / "observe/grafana/provisioning/datasources/prometheus.yml"
    [source] = yaml.safe_load(sources.read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for p in dashboard.dashboard()["panels"] for target in p.get("targets", [])}
    assert used == {source["uid"]}
    assert json.loads(dashboard.FILE.read_text(encoding="utf-8"))["uid"] == "glm-flash-worker"
