"""The real SGLang gets its model from a hub: each file once, and after an interruption only what is missing."""

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
from tests.waiting import START_SECONDS, until

pytestmark = pytest.mark.anyio

MODEL = "tiny/glm"
JOB = json.dumps({"input": conversation("greeting_without_thinking").request()})


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Hub, str]]:
    hub = Hub(MODEL, MODEL_FOLDER)
    async with serving(hub.app(), "127.0.0.1", 0) as port:
        yield hub, f"http://127.0.0.1:{port}"


async def start(cache: Path, hub_url: str) -> Worker:
    """The worker in local mode, for one answer."""
    environment = engine_environment({}) | {
        "MODEL_NAME": MODEL,
        "HF_HUB_CACHE": str(cache),
        "HF_ENDPOINT": hub_url,
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DISABLE_XET": "1",
    }
    return await start_worker(None, environment, arguments=("--test_input", JOB), stdout=subprocess.PIPE)


async def test_download_that_broke_off_is_completed_and_what_was_whole_is_kept(
    tmp_path: Path, hub: tuple[Hub, str]
) -> None:
    source, url = hub
    source.holds_back = "model.safetensors"
    worker = await start(tmp_path, url)
    await until(
        lambda: "model.safetensors" in source.downloads() or worker.process.returncode is not None, START_SECONDS
    )
    await until(lambda: "downloading tiny/glm: " in worker.log or worker.process.returncode is not None)
    assert worker.process.returncode is None, worker.log
    first = source.downloads()
    assert len(first) == len(set(first))
    worker.process.kill()
    await worker.process.wait()
    assert find_model(MODEL, None, [tmp_path]) is None

    source.holds_back = ""
    source.requests.clear()
    worker = await start(tmp_path, url)
    output, _ = await asyncio.wait_for(worker.process.communicate(), START_SECONDS)
    assert worker.process.returncode == 0, worker.log
    message = json.loads(output)["output"][0]["choices"][0]["message"]
    assert message["content"] == conversation("greeting_without_thinking").content
    second = source.downloads()
    assert second.count("model.safetensors") == 1
    assert set(first) & set(second) == {"model.safetensors"}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {*first, *second}
    # The next start is offline: see test_baked_model.py.
    assert find_model(MODEL, None, [tmp_path]) is not None


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
