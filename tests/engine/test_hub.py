"""The real SGLang gets its model from a hub: downloaded once, completed where half of it is there, then offline."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.web_server import serving
from embedded.conversations import conversation
from embedded.environment import MODEL_FOLDER, engine_environment
from scripts.worker_process import Worker, start_worker
from sglang_engine.hub import find_model
from tests.hub import Hub

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("engine 2")]

MODEL = "tiny/glm"
JOB = json.dumps({"input": conversation("greeting_without_thinking").request()})


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Hub, str]]:
    hub = Hub(MODEL, MODEL_FOLDER)
    async with serving(hub.app(), "127.0.0.1", 0) as port:
        yield hub, f"http://127.0.0.1:{port}"


async def answer(cache: Path, hub_url: str) -> Worker:
    """One start of the worker in local mode, with one answer."""
    environment = engine_environment({}) | {
        "MODEL_NAME": MODEL,
        "HF_HUB_CACHE": str(cache),
        "HF_ENDPOINT": hub_url,
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DISABLE_XET": "1",
    }
    arguments = ("--test_input", JOB)
    worker = await start_worker(None, environment, arguments=arguments, stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(worker.process.communicate(), 180)
    assert worker.process.returncode == 0, worker.log
    message = json.loads(output)["output"][0]["choices"][0]["message"]
    assert message["content"] == conversation("greeting_without_thinking").content
    return worker


async def test_model_is_downloaded_once_completed_and_then_left_alone(tmp_path: Path, hub: tuple[Hub, str]) -> None:
    source, url = hub
    source.seconds_per_file = 2.0
    worker = await answer(tmp_path, url)
    assert "model.safetensors" in source.downloads()
    assert len(source.downloads()) == len(set(source.downloads()))
    assert "downloading tiny/glm: " in worker.log
    snapshot = find_model(MODEL, None, [tmp_path])
    assert snapshot is not None

    source.requests.clear()
    worker = await answer(tmp_path, url)
    assert source.requests == []
    assert "the model is on disk: the engine starts offline" in worker.log

    weights = snapshot / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()
    await answer(tmp_path, url)
    assert source.downloads() == ["model.safetensors"], "what was whole is kept"
    assert find_model(MODEL, None, [tmp_path]) == snapshot


async def test_processes_that_share_a_volume_fetch_each_file_once(tmp_path: Path, hub: tuple[Hub, str]) -> None:
    source, url = hub
    source.seconds_per_file = 1.0
    environment = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HOME": str(tmp_path)}
    download = f"import huggingface_hub; huggingface_hub.snapshot_download({MODEL!r})"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", download, env=environment, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [await asyncio.wait_for(process.wait(), 60) for process in processes] == [0] * 4
    assert sorted(source.downloads()) == [path.name for path in source.files()]
    assert find_model(MODEL, None, [tmp_path]) is not None
