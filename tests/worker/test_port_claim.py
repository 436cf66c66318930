"""The engine's port belongs to one worker from before its engine listens until after the engine's end."""

from __future__ import annotations

import pytest

from scripts.worker_process import REPOSITORY, Platform, Worker, free_port, start_worker
from sglang_engine.errors import EngineError
from sglang_engine.launch import Launch
from sglang_engine.port_claim import claim_port
from tests.waiting import until

pytestmark = pytest.mark.anyio

WAYS = ["early, as deployed", "local API", "SGLang alone"]


async def start(way: str, platform: Platform, port: int) -> Worker:
    """A worker whose engine is to listen on this port."""
    environment = {"PORT": str(port)}
    if way == "SGLang alone":
        return await start_worker(None, environment, program=REPOSITORY / "engine.py")
    if way == "local API":
        return await start_worker(None, environment, arguments=("--rp_serve_api", "--rp_api_port", "0"))
    return await start_worker(platform, environment | {"FAILED_START_SECONDS": "0"})


def launch_on(port: int) -> Launch:
    return Launch(arguments=(), settings=(), host="127.0.0.1", port=port, served_model_name="m")


def is_claimed(port: int) -> bool:
    try:
        claim_port(launch_on(port)).close()
    except EngineError:
        return True
    return False


@pytest.mark.parametrize("way", WAYS)
async def test_port_that_another_worker_has_claimed_is_refused_at_once(platform: Platform, way: str) -> None:
    port = free_port()
    with claim_port(launch_on(port)):  # nothing listens on it: the other's engine is still loading
        worker = await start(way, platform, port)
        assert await worker.exit_code() == 1
    assert f"port {port} is in use by another process; set PORT to a free one" in worker.log
    assert not worker.starts_path.exists()


@pytest.mark.parametrize("way", WAYS)
async def test_claim_ends_with_the_worker(platform: Platform, way: str) -> None:
    port = free_port()
    worker = await start(way, platform, port)
    try:
        await until(worker.starts_path.exists)
        assert is_claimed(port)
    finally:
        await worker.stop()
    await until(lambda: not is_claimed(port))
