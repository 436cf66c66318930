"""The benchmarks' own arithmetic and text; what they measure is for scripts/bench to say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import endpoint, metrics, report
from benchmarks.measure import MeasurementError, Result
from benchmarks.profile import ARRIVING, OWNERS, THE_LOOP, shares
from benchmarks.report import Table
from benchmarks.serving import SHOWN, Load, served_of
from benchmarks.tables import markdown, percentile_95


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], 3.0), ([1.0, 2.0], 2.0), ([float(n) for n in range(100, 0, -1)], 95.0)]
)
def test_percentile(values: list[float], expected: float) -> None:
    assert percentile_95(values) == expected


def test_table_is_markdown() -> None:
    assert markdown(("a", "long"), [("1", "2"), ("three", "")]) == (
        "| a     | long |\n|-------|------|\n| 1     | 2    |\n| three |      |"
    )


def test_cost_of_counting_is_told_by_pairs_with_its_error() -> None:
    shares = {metrics.ON: [0.31, 0.35, 0.36], metrics.OFF: [0.30, 0.33, 0.33]}
    table = metrics.table({name: [metrics.Stretch(cpu) for cpu in of_name] for name, of_name in shares.items()})
    assert table.rows == [
        ("with counting", "35.0%", "33.0%", "35.5%"),
        ("without", "33.0%", "31.5%", "33.0%"),
        ("difference, by pair", "2.00%", "1.50%", "2.50%"),
        ("their mean, and its standard error", "2.00% ± 0.58%", "", ""),
    ]


def test_samples_belong_to_the_innermost_known_owner() -> None:
    begin = "main (handler.py:9);run (serverless/modes.py:5);"
    samples = [
        f"{begin}_run (serverless/running.py:1);_post (serverless/runpod.py:7);_request (aiohttp/client.py:9) 5",
        f"{begin}_run (serverless/running.py:1);__anext__ (contextlib.py:1) 3",
        f"{begin}data_received (sglang_engine/transport.py:8);on_body (sglang_engine/transport.py:1) 1",
        f"{begin}run_until_complete (asyncio/runners.py:8) 1",
        "_bootstrap (threading.py:1);wait (pycares/__init__.py:1) 100",
    ]
    posts, events, *_, ours = OWNERS
    assert shares(samples) == {posts: 0.5, ours: 0.3, events: 0.1, THE_LOOP: 0.1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCUMENT", "DATA", "PLOT"):
        monkeypatch.setattr(report, name, tmp_path / getattr(report, name).name)
    (tmp_path / "performance.md").write_text("# x\n<!-- streams -->\nold\n<!-- end -->\n<!-- b -->\nb\n<!-- end -->\n")
    return tmp_path


def result(streams: int) -> Result:
    return Result(streams, events=100 * streams, seconds=1.0, first_median=0.1, first_p95=0.2, job_median=1.0)


def test_written_table_takes_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plot", lambda table, path: path.write_text(str(table)))
    table = Table(("a",), [("new",)], [("ours", result(1)), ("ours", result(8)), ("theirs", result(1))])
    report.write({"streams": table})
    report.write({"streams": table})
    text = (folder / "performance.md").read_text()
    assert text == f"# x\n<!-- streams -->\n{table}\n<!-- end -->\n<!-- b -->\nb\n<!-- end -->\n"
    assert [row["what"] for row in json.loads((folder / "performance.json").read_text())["streams"]] == [
        "ours",
        "ours",
        "theirs",
    ]
    assert (folder / "performance.png").read_text() == str(table)


def test_table_without_a_place_is_an_error(folder: Path) -> None:
    with pytest.raises(LookupError, match="<!-- c -->"):
        report.write({"c": Table(("a",), [])})


def test_document_has_a_place_for_each_part() -> None:
    from benchmarks.__main__ import PARTS

    text = report.DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in (*PARTS, "tiny") if f"<!-- {name} -->" not in text] == []


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:30000/v1/", "http://127.0.0.1:30000/v1"),
        ("http://127.0.0.1:30000", "http://127.0.0.1:30000/v1"),
        ("http://127.0.0.1:8000/openai/v1", "http://127.0.0.1:8000/openai/v1"),
        ("https://api.runpod.ai/v2/abc123", "https://api.runpod.ai/v2/abc123/openai/v1"),
    ],
)
def test_base_url_of_what_users_have_at_hand(url: str, base: str) -> None:
    assert endpoint.base_url(url) == base


METRICS = """\
# HELP sglang:spec_accept_length The average acceptance length of speculative decoding.
sglang:spec_accept_length{model_name="glm-4.7-flash",tp_rank="0"} 2.75
sglang:num_running_reqs{model_name="glm-4.7-flash"} 4.0
"""


class Events(httpx.AsyncByteStream):
    def __init__(self, *payloads: Any) -> None:
        self._payloads = payloads

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for payload in self._payloads:
            yield b"data: " + json.dumps(payload).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def server(request: httpx.Request) -> httpx.Response:
    """An OpenAI-compatible one, as far as the benchmark goes."""
    if request.url.path == "/metrics":
        return httpx.Response(200, text=METRICS)
    if request.url.path == "/v1/models":
        return httpx.Response(200, json={"data": [{"id": "glm-4.7-flash"}]})
    body = json.loads(request.content)
    if body["model"] == "refused":
        return httpx.Response(400, json={"message": "no such model"})
    if body["model"] == "broken":
        return httpx.Response(200, stream=Events(delta(content="x"), {"error": {"message": "it broke"}}))
    usage = {"choices": [], "usage": {"completion_tokens": 7}}
    return httpx.Response(200, stream=Events(delta(role="assistant"), delta(reasoning_content="a"), usage))


@pytest.mark.anyio
async def test_endpoint_is_measured_from_its_events() -> None:
    async with httpx.AsyncClient(base_url="http://x/v1", transport=httpx.MockTransport(server)) as client:
        assert await endpoint.first_model(client) == "glm-4.7-flash"
        answer = await endpoint.answer(client, {"model": "glm-4.7-flash"}, "Hello")
        assert (answer.tokens, answer.first) == (7, answer.last)
        assert await endpoint.accept_length(client) == 2.75
        for model, error in (("refused", "status 400: .*no such model"), ("broken", "it broke")):
            with pytest.raises(endpoint.EndpointError, match=error):
                await endpoint.answer(client, {"model": model}, "Hello")


def test_connection_belongs_to_whoever_called_it() -> None:
    start = "main (handler.py:1);_run_in_loop (serverless/modes.py:9)"
    run = f"{start};Runner._run (serverless/running.py:2)"
    found = shares(
        [
            f"{run};Channel._post (serverless/posting.py:3);Connection.send (common/http1.py:4) 5",
            f"{run};_Body.__anext__ (sglang_engine/transport.py:3);Connection.read (common/http1.py:4) 3",
            f"{start};Connection.data_received (common/http1.py:4) 2",
        ]
    )
    posts, events, *_ = OWNERS
    assert found == {posts: 0.5, events: 0.3, ARRIVING: 0.2}


def test_figures_of_sglang_s_benchmark_are_taken_only_from_a_run_without_failures() -> None:
    said = {"completed": 8, "other": "x"} | dict.fromkeys(SHOWN.values(), 2)
    assert served_of(said, Load(8, 4)).figures == dict.fromkeys(SHOWN.values(), 2.0)
    with pytest.raises(MeasurementError, match="1 of 9 requests went wrong"):
        served_of(said, Load(9, 4))
