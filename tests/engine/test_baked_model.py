"""An image that is built with a model: the Dockerfile's own recipe, then the real SGLang on what it left, offline."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.web_server import serving
from embedded.conversations import conversation
from embedded.environment import MODEL_FOLDER, engine_environment
from scripts.worker_process import REPOSITORY, start_worker
from sglang_engine.hub import find_model
from tests.hub import Hub
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.anyio

MODEL = "tiny/glm"
JOB = json.dumps({"input": conversation("greeting_without_thinking").request()})


def recipe(folder: Path) -> str:
    """The shell text of the Dockerfile's steps that put a model into the image, with this test's paths."""
    text = (REPOSITORY / "Dockerfile").read_text()
    steps = re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    of_the_model = [re.sub(r"--mount=\S+ *(\\\n)? *", "", step) for step in steps if "${MODEL_NAME}" in step]
    assert len(of_the_model) == 2
    script = "\n".join(of_the_model)
    here = {"/opt/models": folder / "models", "/run/secrets": folder, "/tmp/check": REPOSITORY}  # noqa: S108
    for place, path in here.items():
        assert place in script
        script = script.replace(place, str(path))
    return f"set -e\n{script}"


def bake(folder: Path, hub_url: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "MODEL_NAME": MODEL,
        "MODEL_REVISION": "",
        "HF_ENDPOINT": hub_url,
        "HF_HUB_DISABLE_XET": "1",
    }
    command = ["/bin/bash", "-o", "pipefail", "-c", recipe(folder)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Hub, str]]:
    hub = Hub(MODEL, MODEL_FOLDER)
    async with serving(hub.app(), "127.0.0.1", 0) as port:
        yield hub, f"http://127.0.0.1:{port}"


async def test_baked_model_is_whole_and_served_offline(tmp_path: Path, hub: tuple[Hub, str]) -> None:
    source, url = hub
    built = await asyncio.to_thread(bake, tmp_path, url)
    assert built.returncode == 0, built.stderr
    cache = tmp_path / "models" / "hub"
    snapshot = find_model(MODEL, None, [cache])
    assert snapshot is not None
    baked = {path.name for path in snapshot.iterdir()}
    assert {path.name for path in source.files() if path.suffix in (".safetensors", ".json", ".jinja")} <= baked

    source.requests.clear()
    environment = engine_environment({}) | {"MODEL_NAME": MODEL, "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": url}
    environment.pop("HF_HUB_OFFLINE")
    worker = await start_worker(None, environment, arguments=("--test_input", JOB), stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(worker.process.communicate(), START_SECONDS)
    assert worker.process.returncode == 0, worker.log
    message = json.loads(output)["output"][0]["choices"][0]["message"]
    assert message["content"] == conversation("greeting_without_thinking").content
    assert "the model is on disk: the engine starts offline" in worker.log
    assert source.requests == []


async def test_build_fails_without_the_weights(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in MODEL_FOLDER.iterdir():
        if path.suffix == ".json":
            (source / path.name).symlink_to(path)
    async with serving(Hub(MODEL, source).app(), "127.0.0.1", 0) as port:
        built = await asyncio.to_thread(bake, tmp_path, f"http://127.0.0.1:{port}")
    assert built.returncode == 1
    assert f"{MODEL} (main) is not complete in " in built.stderr
