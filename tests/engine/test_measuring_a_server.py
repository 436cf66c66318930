"""`scripts/bench --url` against API mode with the real SGLang, and the picture of what was measured."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.measure import Result
from benchmarks.report import Table, plot
from scripts.worker_process import REPOSITORY
from tests.engine.conftest import Api

pytestmark = pytest.mark.anyio


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(REPOSITORY / "scripts" / "bench"), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize("path", ["/openai/v1", "/v2/local"])
async def test_table_of_two_loads(api: Api, path: str) -> None:
    code, output, errors = await bench("--url", api.url + path, "--streams", "1,3", "--tokens", "24")
    assert (code, errors) == (0, "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "3"]
    for _, first, p95, rate, in_all, accepted in rows:
        assert 0 < int(first.removesuffix(" ms")) <= int(p95.removesuffix(" ms"))
        assert int(rate) > 0
        assert int(in_all) > 0
        assert accepted == ""  # no EAGLE on a CPU


async def test_server_that_is_none_is_named_in_one_line(api: Api) -> None:
    code, output, errors = await bench("--url", f"{api.url}/nowhere")
    assert (code, output) == (1, "")
    assert errors == f"{api.url}/nowhere: it lists no models (status 404); name one with --model\n"


def test_plot_is_a_picture(tmp_path: Path) -> None:
    def result(streams: int) -> Result:
        return Result(streams, events=100 * streams, seconds=1.0, first_median=0.1, first_p95=0.2, job_median=1.0)

    plot(Table((), [], [("ours", result(1)), ("ours", result(8)), ("theirs", result(1))]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
