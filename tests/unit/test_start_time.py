"""The warning where RunPod would give up on a worker before its engine can be ready."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import DEFAULTS, configure, start_limit_warnings
from sglang_engine import hub
from sglang_engine.presets import PRESETS
from sglang_engine.start_time import SIZES_GB, expected_seconds, limit_to_set

ENDPOINT = {"RUNPOD_ENDPOINT_ID": "e"}


@pytest.fixture(autouse=True)
def no_models_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "BAKED_CACHE", tmp_path / "baked")
    monkeypatch.setattr(hub, "RUNPOD_CACHE", tmp_path / "cached")


def warned(tmp_path: Path, **variables: str) -> str:
    environ = {**ENDPOINT, "HF_HOME": str(tmp_path), **variables}
    return " ".join(start_limit_warnings(configure(environ, {}), environ))


def put_model(tmp_path: Path, name: str, cache: str = "cached") -> None:
    snapshot = hub.model_folder(tmp_path / cache, name) / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    for file in ("config.json", "tokenizer.json"):
        (snapshot / file).write_text(json.dumps({}))
    (snapshot / "model.safetensors").write_bytes(b"")


def test_model_to_be_downloaded_without_a_limit_is_warned_about_with_the_number(tmp_path: Path) -> None:
    text = warned(tmp_path)
    assert "not ready after 420 s (RunPod's default)" in text
    assert "62.4 GB" in text
    assert "Set RUNPOD_INIT_TIMEOUT=1500 on the endpoint" in text


def test_limit_shorter_than_the_expected_start_is_warned_about(tmp_path: Path) -> None:
    assert "not ready after 500 s;" in warned(tmp_path, RUNPOD_INIT_TIMEOUT="500")


@pytest.mark.parametrize("preset", PRESETS)
def test_number_that_the_warning_gives_ends_it(preset: str, tmp_path: Path) -> None:
    _, _, number = warned(tmp_path, PRESET=preset).partition("RUNPOD_INIT_TIMEOUT=")
    assert not warned(tmp_path, PRESET=preset, RUNPOD_INIT_TIMEOUT=number.split()[0])


def test_model_on_a_volume_is_read_too_slowly_for_runpod_s_own_limit(tmp_path: Path) -> None:
    put_model(tmp_path, DEFAULTS["MODEL_NAME"])
    text = warned(tmp_path)
    assert "to read and start zai-org/GLM-4.7-Flash, 62.4 GB, can take 492 s" in text
    assert "RUNPOD_INIT_TIMEOUT=780" in text
    assert not warned(tmp_path, RUNPOD_INIT_TIMEOUT="780")


def test_smaller_weights_on_a_volume_fit_it(tmp_path: Path) -> None:
    put_model(tmp_path, "mratsim/GLM-4.7-Flash-FP8")
    assert not warned(tmp_path, PRESET="l40s-fp8")
    assert "RUNPOD_INIT_TIMEOUT=540" in warned(tmp_path, PRESET="l40s-fp8", RUNPOD_INIT_TIMEOUT="60")


def test_model_in_the_image_fits_it(tmp_path: Path) -> None:
    put_model(tmp_path, DEFAULTS["MODEL_NAME"], "baked")
    assert not warned(tmp_path)
    assert "RUNPOD_INIT_TIMEOUT=360" in warned(tmp_path, RUNPOD_INIT_TIMEOUT="60")


def test_model_of_unknown_size_gets_the_worker_s_own_limit(tmp_path: Path) -> None:
    text = warned(tmp_path, MODEL_NAME="org/other", STARTUP_TIMEOUT_SECONDS="900")
    assert "org/other has to be downloaded" in text
    assert "RUNPOD_INIT_TIMEOUT=900" in text
    assert not warned(tmp_path, MODEL_NAME="org/other", RUNPOD_INIT_TIMEOUT="60")


def test_only_endpoints_are_warned_about(tmp_path: Path) -> None:
    assert not warned(tmp_path, RUNPOD_ENDPOINT_ID="")


def test_sizes_are_those_of_the_models_that_the_worker_knows() -> None:
    assert DEFAULTS["MODEL_NAME"] in SIZES_GB
    assert {preset.variables.get("MODEL_NAME", DEFAULTS["MODEL_NAME"]) for preset in PRESETS.values()} == set(SIZES_GB)


def test_start_is_sizes_over_speeds() -> None:
    assert expected_seconds(62.4, with_download=True) == pytest.approx(62.4 / 0.125 + 62.4 / 0.2 + 180)
    assert expected_seconds(62.4, with_download=False) == pytest.approx(62.4 / 0.2 + 180)
    assert expected_seconds(62.4, with_download=False, is_in_image=True) == pytest.approx(62.4 / 2 + 180)
    assert limit_to_set(62.4) % 60 == 0
