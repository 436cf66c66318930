"""The compose file, as Docker Compose itself reads it; no daemon is needed for that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
COMPOSE = Path(sys.executable).with_name("docker-compose")
VARIABLES = ("HF_HOME", "BIND_ADDRESS", "API_PORT", "SGLANG_PORT", "RESTART")


def services_of(folder: Path, dotenv: str, *profiles: str) -> dict[str, Any]:
    """The services with this text in .env."""
    shutil.copy(REPOSITORY / "docker-compose.yml", folder)
    (folder / ".env").write_text(dotenv)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [str(COMPOSE), *(f"--profile={profile}" for profile in profiles), "config", "--format", "json"]
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    services: dict[str, Any] = json.loads(said.stdout)["services"]
    return services


def worker_of(folder: Path, dotenv: str) -> Any:
    return services_of(folder, dotenv)["worker"]


def published(worker: dict[str, Any]) -> set[tuple[str, str, int]]:
    return {(port["host_ip"], port["published"], port["target"]) for port in worker["ports"]}


def test_ports_are_on_loopback_and_models_in_a_volume(tmp_path: Path) -> None:
    worker = worker_of(tmp_path, "")
    assert published(worker) >= {("127.0.0.1", "8000", 8000)}
    assert {address for address, _, _ in published(worker)} == {"127.0.0.1"}
    [cache] = worker["volumes"]
    assert (cache["type"], cache["target"]) == ("volume", worker["environment"]["HF_HOME"])


def test_ports_and_address_follow_their_variables(tmp_path: Path) -> None:
    worker = worker_of(tmp_path, "BIND_ADDRESS=0.0.0.0\nAPI_PORT=9000\n")
    assert ("0.0.0.0", "9000", 8000) in published(worker)


def test_hf_home_is_this_machine_s_folder(tmp_path: Path) -> None:
    worker = worker_of(tmp_path, "HF_HOME=/data/models\n")
    [cache] = worker["volumes"]
    assert (cache["type"], cache["source"]) == ("bind", "/data/models")
    assert worker["environment"]["HF_HOME"] == cache["target"]


@pytest.mark.parametrize(("dotenv", "policy"), [("", "no"), ("RESTART=on-failure:3\n", "on-failure:3")])
def test_a_wrong_setting_is_not_tried_again_unless_asked(tmp_path: Path, dotenv: str, policy: str) -> None:
    assert worker_of(tmp_path, dotenv)["restart"] == policy


def test_fleet_has_a_worker_for_each_gpu_and_a_router_that_knows_them(tmp_path: Path) -> None:
    services = services_of(tmp_path, "", "fleet")
    members = {name: service for name, service in services.items() if name.startswith("fleet-")}
    gpus = [service["environment"]["CUDA_VISIBLE_DEVICES"] for service in members.values()]
    assert sorted(gpus) == list("1234567")  # the first is `worker`'s
    assert all("handler.py --serve_http" in service["command"][-1] for service in members.values())
    assert not any(service.get("ports") for service in members.values())
    known = {word for word in services["router"]["command"] if word.startswith("http://")}
    assert known == {f"http://{name}:8000" for name in ("worker", *members)}
    assert {address for address, _, _ in published(services["router"])} == {"127.0.0.1"}


def test_fleet_is_not_started_unless_asked(tmp_path: Path) -> None:
    assert set(services_of(tmp_path, "")) == {"worker"}
