"""RunPod's Hub: no setting there is unknown to the worker, or has a value that it would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.variables import VARIABLES
from engine import DEFAULTS, EXTRA_ARGS, OPTIONS, configure
from gateway.request import build_request
from sglang_engine.presets import PRESETS

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
    for value in {str(setting.get("default", "")), *values}:
        configure({key: value}, {})


def test_defaults_are_the_worker_s() -> None:
    ours = DEFAULTS | {variable.name: variable.default for variable in VARIABLES}
    for key, setting in SETTINGS.items():
        if ours.get(key):
            assert str(setting["default"]) == ours[key], key


def test_defaults_of_the_listing_leave_a_preset_its_way() -> None:
    defaults = {key: str(setting["default"]) for key, setting in SETTINGS.items() if "default" in setting}
    launch = configure(defaults | {"PRESET": "l40s-fp8"}, DEFAULTS)
    assert launch.arguments[launch.arguments.index("--model-path") + 1] == "mratsim/GLM-4.7-Flash-FP8"


def test_presets_name_the_worker_s() -> None:
    offered = {option["value"] for option in SETTINGS["PRESET"]["options"]}
    assert offered == {"", *PRESETS}
    for preset in HUB["config"]["presets"]:
        assert set(preset["defaults"]) <= set(SETTINGS)
        assert preset["defaults"]["PRESET"] in offered


def test_listing_fits_the_hub() -> None:
    assert len(HUB["description"]) <= 190
    assert HUB["config"]["containerDiskInGb"] > 62 + 40, "the weights and the image"
    for config in (HUB["config"], TESTS["config"]):
        assert config["allowedCudaVersions"] == ["13.0"], "SGLang's image is CUDA 13"


@pytest.mark.parametrize("test", TESTS["tests"], ids=lambda test: test["name"])
def test_inputs_of_the_hub_s_tests_are_requests(test: dict[str, Any]) -> None:
    assert build_request(test["input"], served_model_name="glm-4.7-flash").path.startswith(("/v1/", "/generate"))
    assert test["timeout"] >= 60_000
