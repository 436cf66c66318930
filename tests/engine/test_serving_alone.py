"""`python engine.py`: SGLang alone, in the foreground, as the environment configures it."""

from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from embedded.conversations import conversation
from embedded.environment import engine_environment
from scripts.worker_process import REPOSITORY, SCRIPTED_ENGINE, clean_environment, free_port
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.anyio

ENGINE = [sys.executable, str(REPOSITORY / "engine.py")]


def run(arguments: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENGINE, *arguments],
        cwd=folder,
        env=clean_environment() | dict(environment),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_real_sglang_serves_and_ends_as_the_signal_says(tmp_path: Path) -> None:
    port = free_port()
    environment = engine_environment(clean_environment()) | {"PORT": str(port)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(ENGINE, cwd=tmp_path, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            await until_ready(client, process)
            assert (await client.get("/ping")).status_code == 200, "the health route of RunPod's load balancer"
            greeting = conversation("greeting_without_thinking")
            body = {"model": "glm-4.7-flash", **greeting.request()}
            answer = await client.post("/v1/chat/completions", json=body, timeout=60)
            assert answer.json()["choices"][0]["message"]["content"] == greeting.content
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0, "SGLang's own exit code"
    finally:
        process.kill()
    assert (tmp_path / "log").read_text(errors="replace").startswith("starting the engine: ")


async def until_ready(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert process.poll() is None
            try:
                if (await client.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)


def test_exit_code_of_the_engine_is_passed_through(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {"PYTHONPATH": str(SCRIPTED_ENGINE), "SCRIPTED_ENGINE": '{"exit_code": 7}', "PORT": port}
    assert run([], environment, tmp_path).returncode == 7


async def test_download_is_told_of_until_the_engine_ends(tmp_path: Path) -> None:
    blobs = tmp_path / "models--zai-org--GLM-4.7-Flash" / "blobs"
    blobs.mkdir(parents=True)
    environment = {
        "PYTHONPATH": str(SCRIPTED_ENGINE),
        "PORT": str(free_port()),
        "HF_HUB_CACHE": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    process = await asyncio.create_subprocess_exec(
        *ENGINE, cwd=tmp_path, env=clean_environment() | environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(80):
            assert (await process.stderr.readline()).startswith(b"starting the engine: ")
            await asyncio.sleep(2)  # the first check, which says nothing, is over; the next is 10 s later
            (blobs / "abc.incomplete").write_bytes(b"x" * 5_000_000)
            assert (await process.stderr.readline()).startswith(b"downloading zai-org/GLM-4.7-Flash: 0.005 GB so far, ")
    finally:
        process.kill()
    assert await asyncio.wait_for(process.stderr.read(), 30) == b"", "nobody is left to write"
    await process.wait()


def test_print_shows_everything_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTEXT_LENGTH=4096\n")
    environment = {
        "PYTHONPATH": str(SCRIPTED_ENGINE),
        "SCRIPTED_ENGINE_STARTS": str(tmp_path / "starts"),
        "PRESET": "b200",
        "API_KEY": "sk-secret",
        "MAX_CONCURRENCY": "8",
        "CONTXT_LENGTH": "1",
        "SGLANG_EXTRA_ARGS": "--admin-api-key sk-admin --log-level debug",
    }
    shown = run(["--print"], environment, tmp_path)
    assert shown.returncode == 0
    command, _, *settings = shown.stdout.splitlines()
    assert "-m sglang.launch_server --model-path zai-org/GLM-4.7-Flash --context-length 4096" in command
    assert command.endswith("--admin-api-key '***' --log-level debug")
    rows = {tuple(line.split(None, 2)) for line in settings}
    assert {
        ("MODEL_NAME", "zai-org/GLM-4.7-Flash", "default"),
        ("CONTEXT_LENGTH", "4096", ".env"),
        ("ATTENTION_BACKEND", "triton", "preset b200"),
        ("API_KEY", "***", "environment"),
        ("PRESET", "b200", "environment"),
        ("MAX_CONCURRENCY", "8", "environment"),
        ("REQUEST_TIMEOUT_SECONDS", "600", "default"),
    } <= rows
    assert "did you mean CONTEXT_LENGTH?" in shown.stderr
    assert "sk-" not in shown.stdout + shown.stderr
    assert not (tmp_path / "starts").exists()


@pytest.mark.parametrize("arguments", [[], ["--print"]])
def test_wrong_configuration_ends_with_2_within_a_second(tmp_path: Path, arguments: list[str]) -> None:
    before = cpu_seconds_of_children()
    ended = run(arguments, {"DTYPE": "bf17", "MAX_N": "0", "TP_SIZE": "two"}, tmp_path)
    assert cpu_seconds_of_children() - before < 1  # a second on an idle machine
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 3
    assert "DTYPE='bf17': expected one of auto, bfloat16," in ended.stderr
    assert "Traceback" not in ended.stderr


def cpu_seconds_of_children() -> float:
    """What all children that have ended took together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_and_unknown_arguments(tmp_path: Path) -> None:
    assert "--print" in run(["--help"], {}, tmp_path).stdout
    assert run(["--serve"], {}, tmp_path).returncode == 2
