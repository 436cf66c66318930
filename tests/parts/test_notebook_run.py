"""The notebook's `run`, against the local RunPod: a cold start is told, a failed job raises its own error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from common.web_server import serving
from local_runpod import JobQueue, create_app
from scripts.notebook import NOTEBOOK, environment

pytestmark = pytest.mark.anyio


@dataclass
class Endpoint:
    queue: JobQueue
    names: dict[str, Any]
    """What the notebook's first two cells define."""

    async def run(self) -> Any:
        return await asyncio.to_thread(self.names["run"], {"messages": []})

    async def finish(self, **result: Any) -> None:
        """Be the worker, once the job has waited as long as the notebook's first request does."""
        await asyncio.sleep(self.names["WAIT_MS"] / 1000 + 0.5)
        [job] = self.queue.take("worker", 1)
        self.queue.finish(job, **{"output": None, "error": None, **result})


@pytest.fixture
async def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endpoint]:
    monkeypatch.chdir(tmp_path)  # no .env
    queue = JobQueue()
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    async with serving(create_app(queue), "127.0.0.1", 0) as port:
        names: dict[str, Any] = {}
        with environment({"RUNPOD_BASE_URL": f"http://127.0.0.1:{port}/v2", "NO_PROXY": "127.0.0.1"}):
            for source in cells[:2]:
                exec(source, names)  # noqa: S102 (what Jupyter does)
        names["WAIT_MS"] = 1000
        yield Endpoint(queue, names)
        names["client"].close()
        queue.close()


async def test_cold_start_is_told_while_it_lasts(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = await asyncio.gather(endpoint.run(), endpoint.finish(output=["answer"]))
    assert report["output"] == ["answer"]
    waiting, over = capsys.readouterr().out.splitlines()
    assert waiting.startswith("No worker has taken the job yet: a cold start")
    assert over.startswith("… it was over after ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (json.dumps({"error": {"message": "too hot", "type": "invalid_request_error", "code": 400}}), "too hot"),
        ("out of memory", "out of memory"),
    ],
    ids=["in OpenAI's shape", "text"],
)
async def test_failed_job_raises_its_own_error(endpoint: Endpoint, error: str, message: str) -> None:
    with pytest.raises(endpoint.names["JobFailed"], match=message) as raised:
        await asyncio.gather(endpoint.run(), endpoint.finish(error=error))
    assert raised.value.error["message"] == message
