"""`PRESET=auto`: what is chosen for which cards, in which order of the layers, and where nothing fits."""

from __future__ import annotations

import pytest

from common.settings import ConfigurationError
from engine import DEFAULTS, configure, plan
from sglang_engine.gpus import Card, Machine, choose
from sglang_engine.presets import PRESETS

FP8, AWQ = "mratsim/GLM-4.7-Flash-FP8", "QuantTrio/GLM-4.7-Flash-AWQ"


def card(product: str, memory_gb: float, capability: tuple[int, int], slice_name: str = "") -> Card:
    return Card("GPU-1", product, memory_gb, capability, slice_name)


H100 = card("NVIDIA H100 80GB HBM3", 85.5, (9, 0))
L40S = card("NVIDIA L40S", 48.3, (8, 9))
RTX_3090 = card("NVIDIA GeForce RTX 3090", 25.8, (8, 6))
A6000 = card("NVIDIA RTX A6000", 51.5, (8, 6))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("more", [1.0, 1.08], ids=["GB as sold", "as nvidia-smi counts"])
def test_card_of_a_preset_gets_that_preset(name: str, more: float) -> None:
    preset = PRESETS[name]
    product = preset.product.replace(r"\b", "").replace("(?! NVL)", "").replace("G?", "").replace(".*", " ")
    assert choose([card(f"NVIDIA {product}", preset.memory_gb * more, preset.capability)]).preset == preset


@pytest.mark.parametrize(
    ("one", "model", "context"),
    [
        (card("NVIDIA A100-SXM4-40GB", 42.9, (8, 0)), AWQ, None),
        (card("NVIDIA H100 80GB HBM3", 40, (9, 0), "3g.40gb"), FP8, "65536"),
        (card("NVIDIA H100 80GB HBM3", 24, (9, 0), "1g.24gb"), AWQ, "32768"),
        (card("NVIDIA H200", 71, (9, 0), "4g.71gb"), FP8, "131072"),
        (card("NVIDIA RTX PRO 5000 Blackwell", 51, (12, 0)), FP8, "131072"),
        (card("NVIDIA GeForce RTX 4090", 51.5, (8, 9)), FP8, "131072"),  # with twice its memory, as some sell it
        (card("NVIDIA GH200 480GB", 102, (9, 0)), None, None),
    ],
    ids=lambda value: str(value) if isinstance(value, Card) else "",
)
def test_other_card_gets_the_best_weights_that_fit(one: Card, model: str | None, context: str | None) -> None:
    variables = choose([one]).preset.variables
    assert variables.get("MODEL_NAME") == model
    assert variables.get("CONTEXT_LENGTH") == context


@pytest.mark.parametrize(
    ("cards", "model", "split"),
    [
        ([H100, H100], None, "2"),
        ([A6000, A6000], None, "2"),
        ([L40S, L40S], None, "2"),
        ([RTX_3090, RTX_3090], AWQ, "2"),
        ([RTX_3090] * 4, None, "4"),
        ([H100] * 3, None, "2"),
        ([H100] * 8, None, "4"),
        ([L40S, RTX_3090], FP8, None),  # SGLang splits over cards of one kind only
    ],
    ids=lambda value: f"{len(value)} cards" if isinstance(value, list) else "",
)
def test_several_cards_share_the_model(cards: list[Card], model: str | None, split: str | None) -> None:
    choice = choose(cards)
    assert choice.preset.variables.get("MODEL_NAME") == model
    assert choice.preset.variables.get("TENSOR_PARALLEL_SIZE") == split
    assert ("stay idle" in choice.why) is (len(cards) > int(split or 1))


def test_card_of_data_centre_blackwell_gets_its_attention_back_end_in_a_slice_too() -> None:
    preset = choose([card("NVIDIA B200", 90, (10, 0), "3g.90gb")]).preset
    assert preset.variables["ATTENTION_BACKEND"] == "triton"
    assert "MODEL_NAME" not in preset.variables


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            card("NVIDIA RTX A4000", 17.2, (8, 6)),
            "has too little memory: the smallest variant (AWQ, ",
        ),
        (card("NVIDIA H100 80GB HBM3", 10, (9, 0), "1g.10gb"), "slice 1g.10gb (10 GB, "),
        (card("Tesla V100-SXM2-32GB", 34.4, (7, 0)), "is older than Ampere, and runs no variant of the model"),
    ],
    ids=str,
)
def test_card_that_no_variant_fits_is_refused_with_what_would(one: Card, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        plan({"PRESET": "auto"}, {}, Machine((one,)))
    [problem] = refused.value.problems
    assert problem.startswith("PRESET=auto: ")
    assert said in problem
    assert refused.value.is_lasting


def test_refusal_says_that_other_cards_are_left_out() -> None:
    with pytest.raises(ValueError, match="1 other of 2 cards left out"):
        choose([card("NVIDIA RTX A4000", 17.2, (8, 6)), H100])


def test_engine_counts_the_cards_in_the_order_in_which_the_choice_was_made() -> None:
    assert plan({}).child_environ({})["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    own = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert plan(own).child_environ(own)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_choice_is_told_with_its_reason() -> None:
    launch = plan({"PRESET": "auto"}, {}, Machine((L40S,)))
    [note] = launch.notes
    assert note.startswith("PRESET=auto takes l40s-fp8: NVIDIA L40S (48.3 GB, compute capability 8.9); FP8 weights")
    assert "not run on such a card by the authors" in note
    assert {s.source for s in launch.settings if s.name == "CONTEXT_LENGTH"} == {"preset l40s-fp8"}


def test_split_that_is_asked_for_counts() -> None:
    alone = plan({"PRESET": "auto", "TENSOR_PARALLEL_SIZE": "1"}, {}, Machine((A6000, A6000)))
    assert AWQ in alone.arguments
    assert alone.arguments[alone.arguments.index("--tensor-parallel-size") + 1] == "1"
    copies = plan({"PRESET": "auto", "DATA_PARALLEL_SIZE": "2"}, {}, Machine((A6000, A6000)))
    assert AWQ in copies.arguments
    assert not {"--tp-size", "--tensor-parallel-size"} & set(copies.arguments)


def test_any_variable_wins_over_the_choice() -> None:
    words = plan({"PRESET": "auto", "CONTEXT_LENGTH": "8192"}, {}, Machine((L40S,))).arguments
    assert words[words.index("--context-length") + 1] == "8192"
    assert FP8 in words


# The image's environment is in the environment too, but for the preset: only the image's file has that.
IMAGE = DEFAULTS | {"PRESET": "auto"}


@pytest.mark.parametrize(
    ("user", "model"),
    [
        ({}, FP8),
        ({"CONTEXT_LENGTH": "8192"}, FP8),
        ({"MODEL_NAME": "a/b"}, "a/b"),
        ({"MODEL_PATH": "a/b", "MODEL_NAME": ""}, "a/b"),
        ({"SGLANG_EXTRA_ARGS": "--model-path=a/b"}, "zai-org/GLM-4.7-Flash"),
        ({"PRESET": "l4-awq"}, AWQ),
        ({"PRESET": ""}, "zai-org/GLM-4.7-Flash"),
        ({"PRESET": "off"}, "zai-org/GLM-4.7-Flash"),
    ],
    ids=str,
)
def test_default_of_the_image_counts_where_nothing_else_names_the_model(user: dict[str, str], model: str) -> None:
    words = plan(DEFAULTS | user, IMAGE, Machine((L40S,))).arguments
    assert words[words.index("--model-path") + 1] == model


def test_machine_without_a_gpu_is_refused_as_a_host_only_if_the_user_asked_for_a_choice() -> None:
    nothing = Machine(problem="there is no nvidia-smi")
    with pytest.raises(ConfigurationError, match="no GPU is visible") as error:
        configure({"PRESET": "auto"}, {}, nothing)
    assert (error.value.check, error.value.is_lasting) == ("gpu", False)
    launch = configure(DEFAULTS, IMAGE, nothing)
    assert "zai-org/GLM-4.7-Flash" in launch.arguments
    [note] = launch.notes
    assert note.startswith("PRESET=auto: no GPU is visible (there is no nvidia-smi): nothing is chosen")
