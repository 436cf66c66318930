"""The dashboard's picture: what Prometheus is asked, what its answers mean, and that every panel is drawn."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from scripts import dashboard_picture as picture
from scripts.dashboard import dashboard
from scripts.dashboard_picture import Series, Span
from scripts.dashboard_run import config_of
from scripts.worker_process import REPOSITORY

SPAN = Span(1000.0, 1060.0)


def answering(result: list[dict[str, Any]], asked: list[httpx.URL]) -> httpx.AsyncClient:
    """A client of a Prometheus that gives this result (docs: /prometheus/latest/querying/api) to every query."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(200, json={"status": "success", "data": {"result": result}})

    return httpx.AsyncClient(base_url="http://prometheus", transport=httpx.MockTransport(answer))


@pytest.mark.anyio
async def test_diagram_is_asked_for_step_by_step_and_broken_where_nothing_was_scraped() -> None:
    asked: list[httpx.URL] = []
    matrix = [{"metric": {"outcome": "failed"}, "values": [[1000, "1"], [1005, "2.5"], [1015, "NaN"], [1020, "4"]]}]
    target = {"expr": "rate(x[$__rate_interval])", "legendFormat": "{{outcome}} jobs"}
    async with answering(matrix, asked) as client:
        [series] = await picture.series_of(client, target, SPAN)
    assert asked[0].path == "/api/v1/query_range"
    assert dict(asked[0].params) == {"query": "rate(x[20s])", "start": "1000.0", "end": "1060.0", "step": "5"}
    assert series.name == "failed jobs"
    assert series.times == tuple(range(1000, 1061, 5))
    assert series.values[:2] == (1, 2.5)
    assert all(math.isnan(series.values[step]) for step in (2, 3, 5, 12))
    assert (series.values[4], series.last) == (4, 4)


@pytest.mark.anyio
async def test_number_is_asked_for_at_the_end() -> None:
    asked: list[httpx.URL] = []
    vector = [
        {"metric": {"state": "ready"}, "value": [1060, "1"]},
        {"metric": {"state": "failed"}, "value": [1060, "0"]},
    ]
    target = {"expr": "increase(x[$__range])", "legendFormat": "{{state}}", "instant": True}
    async with answering(vector, asked) as client:
        series = await picture.series_of(client, target, SPAN)
    assert asked[0].path == "/api/v1/query"
    assert dict(asked[0].params) == {"query": "increase(x[60s])", "time": "1060.0"}
    assert [(one.name, one.last) for one in series] == [("failed", 0), ("ready", 1)]


@pytest.mark.anyio
async def test_query_that_prometheus_refuses_is_an_error() -> None:
    refused = httpx.MockTransport(lambda _: httpx.Response(400, json={"status": "error", "error": "parse error"}))
    async with httpx.AsyncClient(base_url="http://prometheus", transport=refused) as client:
        with pytest.raises(httpx.HTTPStatusError):
            await picture.series_of(client, {"expr": "(", "legendFormat": ""}, SPAN)


def test_no_variable_of_grafana_s_is_left_in_any_query() -> None:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            assert "$" not in SPAN.filled_in(target["expr"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123456, "s", "12.3 ms"),
        (0, "s", "0 s"),
        (1.5, "s", "1.5 s"),
        (600, "s", "10 min"),
        (0.257, "percentunit", "25.7 %"),
        (250 * 2**20, "bytes", "250 MiB"),
        (2.5, "reqps", "2.5/s"),
        (1234.5, "short", "1234"),
        (math.nan, "s", "–"),
    ],
)
def test_value_in_its_panel_s_unit(value: float, unit: str, text: str) -> None:
    assert picture.formatted(value, unit) == text


def test_every_panel_is_drawn_and_one_without_an_answer_says_none(tmp_path: Path) -> None:
    times = SPAN.steps()
    wave = Series("p50", tuple(times), tuple(math.nan if at < 1010 else 1 + math.sin(at) for at in times))
    now = Series("ready", (SPAN.end,), (1.0,))
    panels = dashboard()["panels"]
    kinds = {"row": [], "timeseries": [wave, wave], "stat": [now], "bargauge": [now]}
    answers = [[] if panel["title"] == "Whole job" else kinds[panel["type"]] for panel in panels]
    figure = picture.draw(answers, SPAN)
    texts = [text.get_text() for text in figure.texts]
    assert {panel["title"] for panel in panels} <= set(texts)
    assert texts.count("none") == 1
    assert texts.count("ready") == 4, "two names that are the answer, and two below their numbers"
    drawn = [panel for panel in panels if panel["type"] in ("timeseries", "bargauge") and panel["title"] != "Whole job"]
    assert len(figure.axes) == len(drawn)
    picture.save(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width == 1200


def test_picture_in_the_docs_is_small_and_said_to_be_drawn_by_matplotlib() -> None:
    assert picture.FILE.stat().st_size < 200_000
    text = " ".join((REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8").split())
    assert re.search(r"!\[[^]]+\]\(dashboard\.png\)", text)
    assert "drawn by matplotlib" in text


def test_run_scrapes_as_the_compose_file_s_prometheus_does() -> None:
    text = config_of(9100, Path("/k"))
    assert "scrape_interval: 5s" in text
    assert "127.0.0.1:9100" in text
    assert "credentials_file: /k" in text
    assert "worker:8000" not in text
