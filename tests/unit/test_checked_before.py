"""What is refused, or warned about, before anything starts: ranges, contradictions, presets that are undone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.settings import ConfigurationError
from engine import plan, warnings_for
from sglang_engine import options
from sglang_engine.presets import PRESETS
from sglang_engine.ranges import RANGES, Range

REFUSED = [
    ({"TP_SIZE": "3"}, "TP_SIZE=3: the model's 20 attention heads split over 1, 2 or 4 GPUs"),
    ({"TENSOR_PARALLEL_SIZE": "8"}, "TENSOR_PARALLEL_SIZE=8: the model's 20 attention heads split over 1, 2 or 4 GPUs"),
    ({"TP_SIZE": "3", "PRESET": "l40s-fp8"}, "TP_SIZE=3: the model's 20 attention heads"),
    ({"TP_SIZE": "0"}, "TP_SIZE='0': expected a whole number of at least 1"),
    ({"MEM_FRACTION_STATIC": "1.5"}, "MEM_FRACTION_STATIC='1.5': expected a number above 0 and below 1"),
    ({"MEM_FRACTION_STATIC": "1"}, "MEM_FRACTION_STATIC='1': expected a number above 0 and below 1"),
    ({"MEM_FRACTION_STATIC": "nan"}, "MEM_FRACTION_STATIC='nan': expected a number above 0 and below 1"),
    ({"CONTEXT_LENGTH": "-5"}, "CONTEXT_LENGTH='-5': expected a whole number, or one with a unit such as"),
    ({"MAX_RUNNING_REQUESTS": "0"}, "MAX_RUNNING_REQUESTS='0': expected a whole number of at least 1"),
    ({"MAX_LORA_CHUNK_SIZE": "8"}, "MAX_LORA_CHUNK_SIZE='8': expected a whole number from 16 to 128"),
    ({"HICACHE_HOST_MEMORY_FRACTION": "1.01"}, "HICACHE_HOST_MEMORY_FRACTION='1.01': expected a number above 0 and of"),
    (
        {"SPECULATIVE_NUM_STEPS": "3", "SPECULATIVE_NUM_DRAFT_TOKENS": "8"},
        "SPECULATIVE_NUM_DRAFT_TOKENS=8: with SPECULATIVE_NUM_STEPS=3 and SPECULATIVE_EAGLE_TOPK=1, a chain, it must",
    ),
    ({"SPECULATIVE_NUM_STEPS": "5"}, "SPECULATIVE_NUM_DRAFT_TOKENS=4: with SPECULATIVE_NUM_STEPS=5"),
    (
        {"SPECULATIVE_NUM_STEPS": "2", "SPECULATIVE_EAGLE_TOPK": "2", "SPECULATIVE_NUM_DRAFT_TOKENS": "8"},
        "SPECULATIVE_NUM_DRAFT_TOKENS=8: SPECULATIVE_NUM_STEPS=2 and SPECULATIVE_EAGLE_TOPK=2 give 7 at most",
    ),
    (
        {"SPECULATIVE_NUM_STEPS": "", "SPECULATIVE_EAGLE_TOPK": "1"},
        "SPECULATIVE_NUM_STEPS and SPECULATIVE_NUM_DRAFT_TOKENS must be set beside SPECULATIVE_EAGLE_TOPK",
    ),
]


@pytest.mark.parametrize(
    ("environ", "said"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, dict) else ""
)
def test_what_sglang_would_stumble_over_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan(environ)
    [problem] = refused.value.problems
    assert problem.startswith(said)


def test_everything_is_told_at_once_each_once() -> None:
    wrong = {"TP_SIZE": "3", "MEM_FRACTION_STATIC": "1.5", "CONTEXT_LENGTH": "-5", "SPECULATIVE_NUM_STEPS": "5"}
    with pytest.raises(ConfigurationError) as refused:
        plan(wrong | {"PORT": "99999"})
    names = sorted(problem.partition("=")[0] for problem in refused.value.problems)
    assert names == ["CONTEXT_LENGTH", "MEM_FRACTION_STATIC", "PORT", "SPECULATIVE_NUM_DRAFT_TOKENS", "TP_SIZE"]
    with pytest.raises(ConfigurationError) as refused:
        plan({"SPECULATIVE_NUM_STEPS": "-1", "TP_SIZE": "0", "MODEL_NAME": ""})
    names = sorted(problem.partition("=")[0] for problem in refused.value.problems)
    assert names == ["MODEL_NAME is empty: there is no model to serve", "SPECULATIVE_NUM_STEPS", "TP_SIZE"]


@pytest.mark.parametrize(
    "environ",
    [
        {"TP_SIZE": "4"},
        {"TP_SIZE": "8", "ENABLE_DP_ATTENTION": "true", "DP_SIZE": "8"},
        {"TP_SIZE": "3", "MODEL_NAME": "other/model"},
        {"CONTEXT_LENGTH": "128k", "MEM_FRACTION_STATIC": ".5", "CHUNKED_PREFILL_SIZE": "-1"},
        {"SPECULATIVE_NUM_STEPS": "2", "SPECULATIVE_EAGLE_TOPK": "2", "SPECULATIVE_NUM_DRAFT_TOKENS": "7"},
        {"SPECULATIVE_NUM_STEPS": "5", "SPECULATIVE_NUM_DRAFT_TOKENS": "6"},
        {"SPECULATIVE_NUM_STEPS": "5", "SPECULATIVE_ALGORITHM": ""},
        {"SPECULATIVE_NUM_STEPS": ""},
        {"SPECULATIVE_ADAPTIVE": "true", "SPECULATIVE_NUM_STEPS": "5"},
    ],
    ids=" ".join,
)
def test_what_goes_together_is_accepted(environ: dict[str, str]) -> None:
    plan(environ)


@pytest.mark.parametrize(("config", "size", "fits"), [({"num_attention_heads": 4}, "3", False), ({}, "3", True)])
def test_heads_of_a_model_in_a_folder_are_read(tmp_path: Path, config: dict[str, int], size: str, fits: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    environ = {"MODEL_NAME": str(tmp_path), "TP_SIZE": size}
    if fits:
        plan(environ)
        return
    with pytest.raises(ConfigurationError, match="the model's 4 attention heads split over 1, 2 or 4 GPUs"):
        plan(environ)


def test_ranges_are_part_of_the_table() -> None:
    table = {option.flag: option.range for option in options.load()}
    assert {flag: found for flag, found in table.items() if found is not None} == RANGES


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        (Range(least=1), [1, 10**9], [0, -1, float("inf")], "of at least 1"),
        (Range(above=0, below=1), [0.5], [0, 1, float("nan")], "above 0 and below 1"),
        (Range(above=0, most=1), [0.1, 1], [0, 1.1], "above 0 and of at most 1"),
        (Range(least=16, most=128), [16, 128], [15, 129], "from 16 to 128"),
    ],
)
def test_range(bounds: Range, inside: list[float], outside: list[float], said: str) -> None:
    assert all(map(bounds.has, inside))
    assert not any(map(bounds.has, outside))
    assert str(bounds) == said


@pytest.mark.parametrize("name", ["b200", "l40s-fp8", "rtx4090-awq"])
def test_empty_variable_over_a_preset_is_warned_about_with_what_is_lost(name: str) -> None:
    variable, value = next((v, x) for v, x in PRESETS[name].variables.items() if x and v != "MODEL_NAME")
    launch = plan({"PRESET": name, variable: ""})
    [warning] = launch.warnings
    assert warning.startswith(f"{variable} is empty, which undoes {variable}={value} of the preset {name}")
    assert plan({"PRESET": name}).warnings == ()


@pytest.mark.parametrize(
    ("name", "meant"), [("HF_TOKN", "HF_TOKEN"), ("HF_HMOE", "HF_HOME"), ("HF_HUB_CAHCE", "HF_HUB_CACHE")]
)
def test_misspelt_variable_of_hugging_face_gets_its_hint(name: str, meant: str) -> None:
    [warning] = warnings_for({name: "hf_secret"})
    assert warning.endswith(f"did you mean {meant}?")
    assert "hf_secret" not in warning


def test_hugging_face_s_own_variables_get_no_hint() -> None:
    names = "HF_TOKEN HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE HF_XET_CACHE HF_TOKEN_PATH HF_ASSETS_CACHE"
    assert list(warnings_for(dict.fromkeys(names.split(), "x"))) == []


@pytest.mark.parametrize(("environ", "warned"), [({}, False), ({"CONTEXT_LENGTH": "32Ki"}, True)])
def test_context_that_is_short_for_agents_is_warned_about(environ: dict[str, str], warned: bool) -> None:
    warnings = plan(environ | {"AGENT": "true"}).warnings
    assert warnings == (
        ("AGENT=true, but CONTEXT_LENGTH=32Ki (environment): coding agents send prompts of 65,536 tokens and more",)
        if warned
        else ()
    )
    assert plan(environ).warnings == ()


def test_agent_s_default_for_the_chat_template_gives_way_to_one_s_own() -> None:
    words = plan({"AGENT": "yes", "DEFAULT_CHAT_TEMPLATE_KWARGS": "{}"}).arguments
    assert words[words.index("--default-chat-template-kwargs") + 1] == "{}"
    launch = plan({"AGENT": "true"})
    assert launch.child_environ({"SGLANG_TOOL_STRICT_LEVEL": "1"})["SGLANG_TOOL_STRICT_LEVEL"] == "1"
    assert launch.child_environ({})["SGLANG_TOOL_STRICT_LEVEL"] == "2"
    assert "SGLANG_TOOL_STRICT_LEVEL" not in plan({}).child_environ({})
