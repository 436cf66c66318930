"""docs/handlers.md, word for word: its programs and commands are run as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import serverless
from scripts.worker_process import (
    REPOSITORY,
    Worker,
    clean_environment,
    free_port,
    running_platform,
    start_worker,
    until_api_is_ready,
)
from serverless import validate
from tests.worker.sdk_places import ANSWER_SECONDS

pytestmark = pytest.mark.anyio

PAGE = (REPOSITORY / "docs" / "handlers.md").read_text(encoding="utf-8")
NEEDS_DOCKER = ("docker ", "examples/build_and_test.sh")
DEPLOYED = "https://api.runpod.ai/v2/ENDPOINT_ID"


def blocks(language: str) -> list[str]:
    """The code of every block in this language."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", PAGE, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for _, code in found]


PROGRAMS = {code.split("\n", 1)[0].removeprefix("# "): code for code in blocks("python") if code.startswith("# ")}


def test_every_python_block_is_a_program_or_the_schema() -> None:
    others = [code for code in blocks("python") if code not in PROGRAMS.values()]
    assert sorted(PROGRAMS) == ["counting.py", "hello.py"]
    assert [code.split(" = ")[0] for code in others] == ["SCHEMA"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The repository, with the page's programs in it."""
    for name in ("common", "local_runpod", "serverless"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


async def test_commands_do_what_the_page_says(folder: Path) -> None:
    """In order, each followed by what it prints; what serves the API goes on until the next does."""
    port = str(free_port())
    ran = 0
    async with AsyncExitStack() as stack:
        for command, printed in (each for block in blocks("console") for each in commands_of(block)):
            if command.startswith(NEEDS_DOCKER):
                continue
            ran += 1
            line = command.replace(".venv/bin/python", sys.executable).replace("8000", port)
            line = line.replace(DEPLOYED, f"http://127.0.0.1:{port}/v2/local")
            if "--rp_serve_api" in command:
                await stack.aclose()
                await stack.enter_async_context(serving(f"{line} --rp_api_port {port}", folder, port))
                continue
            output = await output_of(line, folder)
            if printed:
                assert json.loads(output) == json.loads(printed)
            elif "curl" in command:
                answer = json.loads(output)
                assert (answer["status"], "Hello, Ada" in answer["output"]["greeting"]) == ("COMPLETED", True)
    assert ran == 8
    mine = folder / "examples" / "mine"
    assert "COPY examples/mine/handler.py" in (mine / "Dockerfile").read_text(encoding="utf-8")
    assert "!examples/mine/handler.py" in (mine / "Dockerfile.dockerignore").read_text(encoding="utf-8")


def commands_of(block: str) -> list[tuple[str, str]]:
    """The commands of a console's block, each with what it prints there."""
    found: list[tuple[str, str]] = []
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


async def output_of(line: str, folder: Path) -> str:
    environment = clean_environment() | {"RUNPOD_API_KEY": "of-runpod", "NO_PROXY": "127.0.0.1"}
    run = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return str(run.stdout)


@asynccontextmanager
async def serving(line: str, folder: Path, port: str) -> AsyncIterator[None]:
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"exec env {line}", cwd=folder, env=clean_environment(), stdout=log, stderr=log
        )
    worker = Worker(process, "", log_path, folder / "starts")
    try:
        await until_api_is_ready(f"http://127.0.0.1:{port}", worker, ANSWER_SECONDS)
        yield
    finally:
        assert await worker.stop() == 0, worker.log


async def test_program_that_has_something_to_start_counts(folder: Path) -> None:
    words = ("--test_input", '{"input": {"word": "a"}}')
    report = json.loads(await output_of(shlex.join([sys.executable, "counting.py", *words]), folder))
    assert report == {"id": "local_test", "status": "COMPLETED", "output": {"count": 1}}
    async with running_platform() as platform:
        worker = await start_worker(platform, {"PYTHONPATH": str(REPOSITORY)}, program=folder / "counting.py")
        counts = [await platform.answer({"word": word}, ANSWER_SECONDS) for word in ("a", "b", "a")]
        assert [(job.output, job.stream) for job in counts] == [({"count": n}, []) for n in (1, 1, 2)]
        assert await worker.stop() == 0


def test_schema_says_what_the_page_says_of_it() -> None:
    [code] = [code for code in blocks("python") if code.startswith("SCHEMA")]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the page's own
    schema = names["SCHEMA"]
    assert validate({"prompt": "p"}, schema) == {"validated_input": {"prompt": "p", "temperature": 0.7, "seed": None}}
    assert validate({"prompt": "p", "temperature": 1}, schema)["validated_input"]["temperature"] == 1.0
    assert validate({"prompt": "p" * 1001}, schema) == {"errors": ["prompt does not meet the constraints."]}
    assert validate({"prompt": "p", "temperature": 5.0}, schema) == {
        "errors": ["temperature does not meet the constraints."]
    }


def test_imports_of_other_sdks_have_their_places_here() -> None:
    """Those of RunPod's SDK, which is installed, are there too."""
    rows = re.findall(r"^\| (`(?:import|from) .*) \| (`.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for there, here in rows:
        for statement in re.findall(r"`((?:import|from) [^`]*)`", there + here):
            if "wavespeed" not in statement:
                exec(statement, {})  # noqa: S102 - the page's own
    for name in re.findall(r"`(?:serverless)?\.(\w+)`", " ".join(here for _, here in rows)):
        assert callable(getattr(serverless, name))
