"""RunPod's Hub: no setting there is unknown to the worker, or has a value that it would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.variables import VARIABLES
from engine import DEFAULTS, EXTRA_ARGS, OPTIONS, configure
from gateway.http_server.settings import HttpSettings
from gateway.request import build_request
from scripts.deployment import POOLS
from sglang_engine.presets import PRESETS
from sglang_engine.start_time import DEFAULT_SIZE_GB, SIZES_GB, limit_to_set

FOLDER = Path(__file__).parents[2] / ".runpod"
HUB = json.loads((FOLDER / "hub.json").read_text())
TESTS = json.loads((FOLDER / "tests.json").read_text())
SETTINGS: dict[str, dict[str, Any]] = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}
KNOWN = {*OPTIONS, *(variable.name for variable in VARIABLES), EXTRA_ARGS, "PRESET", "HF_TOKEN"}


def test_every_setting_is_known() -> None:
    assert set(SETTINGS) <= KNOWN
    assert {entry["key"] for entry in TESTS["config"]["env"]} <= KNOWN


@pytest.mark.parametrize("key", SETTINGS)
def test_every_default_and_option_is_accepted(key: str) -> None:
    setting = SETTINGS[key]
    assert setting["type"] in ("string", "number", "boolean", "huggingface")
    values = [option["value"] for option in setting.get("options", [])]
    if values:
        assert setting["default"] in values
    for value in {_text(setting.get("default", "")), *values}:
        configure({key: value}, {})


def _text(value: Any) -> str:
    """A default as the Hub puts it into the environment."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_defaults_are_the_worker_s() -> None:
    ours = DEFAULTS | {variable.name: variable.default for variable in VARIABLES}
    for key, setting in SETTINGS.items():
        if ours.get(key):
            assert _text(setting["default"]) == ours[key], key


LISTED = {key: _text(setting["default"]) for key, setting in SETTINGS.items() if "default" in setting}


@pytest.mark.parametrize("name", PRESETS)
def test_defaults_of_the_listing_leave_a_preset_its_way(name: str) -> None:
    assert "" not in LISTED.values(), "an empty value turns off what a preset sets"
    with_listing = configure(LISTED | {"PRESET": name, "MODE": ""}, DEFAULTS)
    alone = configure({"PRESET": name}, {})
    chosen = {setting.name: setting.value for setting in with_listing.settings}
    assert chosen.items() >= {(setting.name, setting.value) for setting in alone.settings}


def test_presets_name_the_worker_s() -> None:
    offered = {option["value"] for option in SETTINGS["PRESET"]["options"]}
    assert offered == {"auto", *PRESETS}
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= set(SETTINGS)
        configure(LISTED | preset["defaults"], DEFAULTS)


def test_presets_fit_the_pools_that_the_listing_offers() -> None:
    pools = set(HUB["config"]["gpuIds"].split(","))
    for preset in HUB["config"]["presets"]:
        name = preset["defaults"]["PRESET"]
        assert name == "auto" or POOLS[name] in pools


def test_start_limits_are_long_enough_for_a_download() -> None:
    assert SETTINGS["RUNPOD_INIT_TIMEOUT"]["default"] == limit_to_set(DEFAULT_SIZE_GB)
    environment = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    small_model_gb = 1.5  # Qwen/Qwen3-0.6B
    assert int(environment["RUNPOD_INIT_TIMEOUT"]) >= limit_to_set(small_model_gb)


def test_tests_of_the_hub_run_a_small_model_on_a_small_gpu() -> None:
    environment = {entry["key"]: entry["value"] for entry in TESTS["config"]["env"]}
    assert PRESETS[environment["PRESET"]].is_for(TESTS["config"]["gpuTypeId"])
    words = configure(environment, {}).arguments
    assert words[words.index("--model-path") + 1] == environment["MODEL_NAME"] not in SIZES_GB
    assert "--speculative-algorithm" not in words, "the draft layer is GLM's"


def test_listing_for_load_balancing_is_two_values_away() -> None:
    """docs/deploy.md says which; "LB" is the only value of that key."""
    config = HUB["config"] | {"endpointType": "LB"}
    (mode,) = (entry["input"] for entry in config["env"] if entry["key"] == "MODE")
    assert {option["value"] for option in mode["options"]} == {"queue", "http"}
    environment = LISTED | {"MODE": "http", "RUNPOD_ENDPOINT_ID": "e"}
    configure(environment, DEFAULTS)
    assert HttpSettings.from_environ(environment).port == 80


def test_listing_fits_the_hub() -> None:
    assert len(HUB["description"]) <= 190
    assert HUB["config"]["containerDiskInGb"] > 62 + 40, "the weights and the image"
    for config in (HUB["config"], TESTS["config"]):
        assert config["allowedCudaVersions"] == ["13.0"], "SGLang's image is CUDA 13"


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_inputs_of_the_hub_s_tests_are_requests(test: dict[str, Any]) -> None:
    assert build_request(test["input"], served_model_name="glm-4.7-flash").path.startswith(("/v1/", "/generate"))
    assert test["timeout"] >= 60_000
