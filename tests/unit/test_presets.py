"""The presets: each fits its card by its own arithmetic, has a source for each variable, and knows its card by name."""

from __future__ import annotations

import pytest

from engine import DEFAULTS, plan
from sglang_engine.presets import AWQ, BF16, FP8, KV_BYTES_PER_TOKEN, MODEL_CONTEXT_TOKENS, PRESETS, STATIC_SHARE

# As nvidia-smi names them (https://docs.runpod.io/references/gpu-types).
CARDS = [
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA H100 PCIe", "h100"),
    ("NVIDIA H100 NVL", "h100-nvl"),
    ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
    ("NVIDIA A100 80GB PCIe", "a100-80gb"),
    ("NVIDIA H200", "h200"),
    ("NVIDIA H200 NVL", "h200"),
    ("NVIDIA B200", "b200"),
    ("NVIDIA B300 SXM6 AC", "b300"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
    ("NVIDIA L40S", "l40s-fp8"),
    ("NVIDIA L40", "l40-fp8"),
    ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada-fp8"),
    ("NVIDIA RTX A6000", "a6000-awq"),
    ("NVIDIA A40", "a40-awq"),
    ("NVIDIA GeForce RTX 5090", "rtx5090"),
    ("NVIDIA GeForce RTX 4090", "rtx4090-awq"),
    ("NVIDIA GeForce RTX 3090", "rtx3090-awq"),
    ("NVIDIA GeForce RTX 3090 Ti", "rtx3090-awq"),
    ("NVIDIA RTX A5000", "a5000-awq"),
    ("NVIDIA L4", "l4-awq"),
]
OTHERS = [
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA GH200 480GB",
    "Tesla T4",
    "NVIDIA RTX PRO 5000 Blackwell",
    "NVIDIA RTX A4000",
]


@pytest.mark.parametrize(("product", "name"), CARDS)
def test_card_is_known_by_its_name_in_nvidia_smi(product: str, name: str) -> None:
    assert [preset.name for preset in PRESETS.values() if preset.is_for(product)] == [name]


@pytest.mark.parametrize("product", OTHERS)
def test_card_without_a_preset_is_nobody_s(product: str) -> None:
    assert not [preset.name for preset in PRESETS.values() if preset.is_for(product)]


def test_every_preset_has_a_card_that_is_known_by_name() -> None:
    assert {name for _, name in CARDS} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_fits_its_card_by_its_own_arithmetic(name: str) -> None:
    preset = PRESETS[name]
    assert preset.weights.fits(preset.memory_gb, preset.capability)
    context = int(preset.variables.get("CONTEXT_LENGTH", 0))
    cache_bytes = (preset.memory_gb * STATIC_SHARE - preset.weights.size_gb) * 1e9
    assert context * KV_BYTES_PER_TOKEN <= cache_bytes
    assert context <= MODEL_CONTEXT_TOKENS
    assert float(DEFAULTS["MEM_FRACTION_STATIC"]) == STATIC_SHARE


@pytest.mark.parametrize("name", PRESETS)
def test_every_variable_of_a_preset_has_its_source(name: str) -> None:
    preset = PRESETS[name]
    assert set(preset.sources) == {"card", *preset.variables}
    assert all(
        source.startswith(("arithmetic", "https://", "the defaults", "as on")) for source in preset.sources.values()
    )


def test_attention_back_end_is_set_on_sm_100_alone() -> None:
    """SGLang 0.5.23 takes fa3 on Hopper and triton on sm_120 and on what is older, by itself."""
    assert {name for name, preset in PRESETS.items() if "ATTENTION_BACKEND" in preset.variables} == {"b200", "b300"}


def test_fp8_is_for_cards_that_have_it() -> None:
    assert not FP8.fits(48, (8, 6))
    assert FP8.fits(48, (8, 9))
    assert AWQ.fits(48, (8, 6))
    assert not BF16.fits(48, (9, 0))
    assert not AWQ.fits(16, (8, 9))


def test_preset_gives_its_model_and_a_variable_wins_over_it() -> None:
    words = plan({"PRESET": "a6000-awq", "CONTEXT_LENGTH": "8192"}).arguments
    assert words[words.index("--model-path") + 1] == "QuantTrio/GLM-4.7-Flash-AWQ"
    assert words[words.index("--context-length") + 1] == "8192"
    assert "--speculative-algorithm" not in words
