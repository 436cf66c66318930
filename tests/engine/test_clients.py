"""Each snippet of docs/clients.md, as it stands there, against API mode with the real SGLang on the tiny GLM."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedded.environment import engine_environment
from scripts.worker_process import REPOSITORY, Worker, running_http_worker
from tests.engine.conftest import Api
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.anyio

DEPLOYED = "https://api.runpod.ai/v2"
LOAD_BALANCED = "https://<ENDPOINT_ID>.api.runpod.ai"
SECONDS = 120


@dataclass(frozen=True)
class Snippet:
    title: str
    language: str
    code: str


def snippets() -> list[Snippet]:
    """Every code block, by the heading above it."""
    page = (REPOSITORY / "docs" / "clients.md").read_text()
    title, found = "", []
    for heading, language, code in re.findall(r"^## ([^\n]*)$|^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        title = heading or title
        if language:
            found.append(Snippet(title, language, code))
    return found


@pytest.mark.parametrize("snippet", snippets(), ids=lambda snippet: f"{snippet.title}, {snippet.language}")
async def test_snippet(snippet: Snippet, api: Api, tmp_path: Path) -> None:
    code = snippet.code.replace(LOAD_BALANCED, api.url).replace(DEPLOYED, f"{api.url}/v2")
    await check(snippet, code.replace("<ENDPOINT_ID>", "local"), tmp_path, runpod=f"{api.url}/v2")


@pytest.fixture(scope="module")
async def http_worker() -> AsyncIterator[Worker]:
    async with running_http_worker(engine_environment({"API_KEY": "local-key"}), start_seconds=START_SECONDS) as worker:
        yield worker


SPOKEN = [each for each in snippets() if "/openai" in each.code and each.language != "javascript"]


@pytest.mark.parametrize("snippet", SPOKEN, ids=lambda snippet: f"{snippet.title}, {snippet.language}")
async def test_snippet_over_plain_http(snippet: Snippet, http_worker: Worker, tmp_path: Path) -> None:
    code = snippet.code.replace(f"{DEPLOYED}/<ENDPOINT_ID>/openai", http_worker.http_url)
    await check(snippet, code, tmp_path)


async def check(snippet: Snippet, code: str, tmp_path: Path, *, runpod: str = "") -> None:
    match snippet.language:
        case "python":
            command = python(code)
        case "sh":
            command = ["sh", "-c", code]
        case "javascript":
            command = javascript(code, tmp_path)
        case other:
            pytest.fail(f"nothing here runs {other}")
    answer = await run(command, tmp_path, runpod)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    assert "error" not in answer.stdout.lower()
    if "temperature=-1" in code:
        assert answer.stdout.startswith("400 temperature must be")


def python(code: str) -> list[str]:
    for package in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    return [sys.executable, "-c", code]


def javascript(code: str, folder: Path) -> list[str]:
    if (npm := shutil.which("npm")) is None:
        pytest.skip("needs Node.js and npm")
    installed = subprocess.run(
        [npm, "install", "--silent", "--no-audit", "openai@6"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if installed.returncode:
        pytest.skip(f"needs npm's registry: {installed.stderr[-200:]}")
    (folder / "snippet.mjs").write_text(code)
    return ["node", "snippet.mjs"]


async def run(command: list[str], folder: Path, runpod: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "RUNPOD_API_KEY": "local-key",
        "RUNPOD_ENDPOINT_BASE_URL": runpod,
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks GitHub for prices
    }
    return await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
