"""Prometheus itself, where it is installed: its parser on the metrics page, its engine on the dashboard's queries."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time

import httpx
import pytest

from scripts import dashboard_picture
from scripts.dashboard import dashboard
from scripts.dashboard_picture import Span
from scripts.dashboard_run import running_prometheus
from scripts.worker_process import REPOSITORY, free_port, running_platform, running_worker
from tests.waiting import ENOUGH_SECONDS

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="Prometheus is not installed (Debian: apt-get install prometheus)",
    ),
]

HELLO = [{"role": "user", "content": "Hello"}]
CHUNKS = [
    {"choices": [{"delta": {"content": "Hello"}}]},
    {"choices": [{"delta": {"content": "!"}, "finish_reason": "stop"}]},
    {
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
    },
]
STREAM = {"messages": HELLO, "stream": True, "script": {"chunks": CHUNKS, "pause": 0.02}}


def test_promtool_accepts_the_configuration() -> None:
    command = ["promtool", "check", "config", "--syntax-only", str(REPOSITORY / "observe" / "prometheus.yml")]
    subprocess.run(command, check=True, capture_output=True)


async def test_promtool_accepts_the_page_and_prometheus_answers_every_query_of_the_dashboard() -> None:
    port, began = free_port(), time.time()
    async with (
        running_prometheus("prometheus", port) as url,
        running_platform() as platform,
        running_worker(platform, {"METRICS_PORT": str(port)}),
    ):
        platform.faults.refusals["job-done"].append(500)

        async def empty() -> list[str]:
            answers = await dashboard_picture.ask(url, Span(began, time.time()))
            panels = zip(dashboard()["panels"], answers, strict=True)
            return [panel["title"] for panel, series in panels if not series and panel["type"] != "row"]

        give_up_at = time.monotonic() + 2 * ENOUGH_SECONDS
        while still := await empty():  # rates need two scrapes, five seconds apart
            assert time.monotonic() < give_up_at, f"no answer for these panels: {still}"
            await platform.answer(STREAM)
            await asyncio.sleep(0.2)
        async with httpx.AsyncClient(trust_env=False) as worker:
            page = (await worker.get(f"http://127.0.0.1:{port}/metrics")).content
        checked = await asyncio.to_thread(
            subprocess.run, ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, b""), "its parser, and its rules for names"
