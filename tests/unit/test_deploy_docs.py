"""docs/deploy.md against the code: figures, requests and options in it are those that scripts/deploy works out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.variables import VARIABLES
from scripts.deploy import client_lines
from scripts.deployment import POOLS, Wanted, deployment
from sglang_engine.presets import ALL_WEIGHTS, PRESETS
from sglang_engine.start_time import limit_to_set
from tests.rest_v2 import RestApi

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
IMAGE = "<registry>/glm-flash-worker:0.2.0"


@pytest.mark.parametrize("name", PRESETS)
def test_table_of_gpus_has_what_is_worked_out(name: str) -> None:
    preset = PRESETS[name]
    value = deployment(Wanted(image=IMAGE, gpu=name)).body["scaling"]["requestCount"]
    weights = f"{preset.weights.name}, {preset.weights.size_gb:g} GB"
    assert f"| {preset.card} | `{name}` | `{POOLS[name]}` | {weights} | {preset.cache_tokens:,} | {value} |" in PAGE


def test_request_by_hand_is_the_one_that_the_script_sends() -> None:
    shown = re.search(r"api\.runpod\.io/v2/serverless .*?-d '(\{.*?\})'\n", PAGE, re.DOTALL)
    assert shown
    assert json.loads(shown[1]) == deployment(Wanted(image=IMAGE, gpu="h100")).body


@pytest.mark.parametrize("weights", ALL_WEIGHTS, ids=lambda weights: weights.name)
def test_start_limits_and_disks_are_those_that_are_set(weights: object) -> None:
    preset = next(preset for preset in PRESETS.values() if preset.weights is weights)
    assert f"| {preset.weights.name}, {preset.weights.size_gb:g} GB | {limit_to_set(preset.weights.size_gb)} |" in PAGE
    disk = deployment(Wanted(image=IMAGE, gpu=preset.name)).body["disk"]
    assert f"{disk} GB ({preset.weights.name})" in PAGE


def test_models_to_be_cached_are_those_that_the_presets_name() -> None:
    for weights in ALL_WEIGHTS:
        assert PAGE.count(f"`{weights.variables.get('MODEL_NAME', 'zai-org/GLM-4.7-Flash')}`") >= 2


def test_addresses_are_those_of_the_clients_lines() -> None:
    endpoint = RestApi(base_url="https://api.runpod.ai").add(deployment(Wanted(image=IMAGE, gpu="h100")).body, "<ID>")
    (base,) = re.findall(r'base_url="([^"]+)"', client_lines(endpoint, "glm-4.7-flash"))
    assert base.replace("<ID>", "<ENDPOINT_ID>") in PAGE


def test_numbers_of_seconds_are_the_defaults() -> None:
    defaults = {variable.name: variable.default for variable in VARIABLES}
    found = re.findall(r"`([A-Z_]+_SECONDS)` \((\d+)\)", PAGE)
    assert {name for name, _ in found} == {"SHUTDOWN_TIMEOUT_SECONDS", "STARTUP_TIMEOUT_SECONDS"}
    assert all(defaults[name] == seconds for name, seconds in found)


def test_every_build_names_a_tag_and_the_platform_of_the_hosts() -> None:
    """Without them, an image built on a Mac does not start, and workers of one endpoint can run different images."""
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("examples/**/*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    builds = re.findall(r"docker build .*", text)
    assert len(builds) >= 5
    for line in builds:
        assert "--platform linux/amd64" in line, line
        assert re.search(r"-t \S+:[\w.-]+ ", line), line
