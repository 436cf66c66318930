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


def worker_of(folder: Path, dotenv: str) -> dict[str, Any]:
    """The service `worker` with this text in .env."""
    shutil.copy(REPOSITORY / "docker-compose.yml", folder)
    (folder / ".env").write_text(dotenv)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    said = subprocess.run(
        [COMPOSE, "config", "--format", "json"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    worker: dict[str, Any] = json.loads(said.stdout)["services"]["worker"]
    return worker


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
