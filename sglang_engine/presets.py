"""What a GPU needs, as plain data: `PRESET=…` sets these variables, and any variable in the environment overrides them.

Each variable has its source, or its arithmetic, beside it. None of this has been run on its card by the authors of this
worker. `PRESET=auto` (sglang_engine.gpus) chooses by the same arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MODEL_CARD = "https://huggingface.co/zai-org/GLM-4.7-Flash"
COOKBOOK = "https://docs.sglang.io/cookbook/autoregressive/GLM/GLM-4.7-Flash"
FP8_CARD = "https://huggingface.co/mratsim/GLM-4.7-Flash-FP8"
AWQ_CARD = "https://huggingface.co/QuantTrio/GLM-4.7-Flash-AWQ"
BACKENDS = "SGLang 0.5.23, get_default_attn_backend"

# One token of GLM-4.7-Flash's KV cache: 47 layers x (512 + 64) values x 2 bytes.
KV_BYTES_PER_TOKEN = 47 * (512 + 64) * 2
# DEFAULTS' MEM_FRACTION_STATIC: the share of the memory that weights and KV cache may have.
STATIC_SHARE = 0.9
MODEL_CONTEXT_TOKENS = 202_752
_CONTEXTS = (131_072, 65_536, 32_768)
LONGEST_THAT_FITS = "arithmetic: the longest of 131,072, 65,536 and 32,768 tokens for which there is room"


@dataclass(frozen=True)
class Weights:
    """One form of the model: what it takes of a GPU, and the variables that choose it, each with its source."""

    name: str
    size_gb: float
    capability: tuple[int, int]
    """The oldest compute capability that it runs on."""
    variables: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    most_context: int | None = None
    """The longest context that it is known to work with; None for the model's own."""

    def free_gb(self, memory_gb: float, cards: int = 1) -> float:
        """What a card has for the KV cache, in GB (10^9 bytes), if the weights are split over so many cards."""
        return memory_gb * STATIC_SHARE - self.size_gb / cards

    def cache_tokens(self, memory_gb: float, cards: int = 1) -> int:
        """How many tokens of KV cache fit. Each card has the whole cache: MLA's has one head, which cannot be split."""
        return int(self.free_gb(memory_gb, cards) * 1e9 / KV_BYTES_PER_TOKEN)

    def fits(self, memory_gb: float, capability: tuple[int, int], cards: int = 1) -> bool:
        """Whether these cards run it with a context that is worth having."""
        return capability >= self.capability and self.cache_tokens(memory_gb, cards) >= _CONTEXTS[-1]


BF16 = Weights("bf16", 62.4, (8, 0))
FP8 = Weights(
    "FP8",
    31,
    (8, 9),
    {"MODEL_NAME": "mratsim/GLM-4.7-Flash-FP8", "SPECULATIVE_ALGORITHM": ""},
    {
        "MODEL_NAME": f"{FP8_CARD}: FP8 weights of 31 GB, for Ada and newer",
        "SPECULATIVE_ALGORITHM": f"{FP8_CARD} was tested without a draft layer",
    },
    most_context=131_072,
)
AWQ = Weights(
    "AWQ",
    19.5,
    (8, 0),
    {"MODEL_NAME": "QuantTrio/GLM-4.7-Flash-AWQ", "SPECULATIVE_ALGORITHM": ""},
    {
        "MODEL_NAME": f"{AWQ_CARD}: 4-bit weights of 18-20 GB, taken as 19.5, for Ampere and newer",
        "SPECULATIVE_ALGORITHM": "arithmetic: on 24 GB there is no room for the draft layer; nowhere known to work",
    },
)
# The best first.
ALL_WEIGHTS = (BF16, FP8, AWQ)


@dataclass(frozen=True)
class Preset:
    """The variables for one card, and where each of them comes from."""

    name: str
    card: str
    weights: Weights
    memory_gb: float
    """The card's memory as it is sold, in GB."""
    capability: tuple[int, int]
    """Its compute capability, by https://developer.nvidia.com/cuda-gpus."""
    product: str
    """A pattern of its name in nvidia-smi."""
    variables: dict[str, str]
    sources: dict[str, str]
    """Variable -> source; `card` for the source of the preset as a whole."""

    cards: int = 1
    """Over how many of these cards the weights are split."""

    @property
    def cache_tokens(self) -> int:
        """Tokens of KV cache beside the weights, by arithmetic."""
        return self.weights.cache_tokens(self.memory_gb, self.cards)

    def is_for(self, product: str) -> bool:
        """Whether a card with this name in nvidia-smi is the preset's."""
        return re.search(self.product, product) is not None


def preset_of(
    name: str,
    card: str,
    weights: Weights,
    memory_gb: float,
    capability: tuple[int, int],
    product: str = "$^",
    *,
    source: str = "",
    cards: int = 1,
) -> Preset:
    """The preset of a card: its weights' variables, a context that fits, and an attention back end where it needs one.

    memory_gb: of one card. source: of the preset as a whole, besides its arithmetic.
    """
    variables, sources = dict(weights.variables), dict(weights.sources)
    tokens, free = weights.cache_tokens(memory_gb, cards), weights.free_gb(memory_gb, cards)
    arithmetic = (
        f"arithmetic: {memory_gb:.4g} GB x {STATIC_SHARE} - {weights.size_gb / cards:.3g} GB of {weights.name} weights "
        f"= {free:.1f} GB, {tokens:,} tokens of KV cache"
    )
    if (context := _context(weights, tokens)) is not None:
        variables["CONTEXT_LENGTH"] = str(context)
        is_tested = context == weights.most_context
        sources["CONTEXT_LENGTH"] = f"{FP8_CARD} was tested with it" if is_tested else LONGEST_THAT_FITS
    if capability[0] == 10:
        variables |= {"ATTENTION_BACKEND": "triton", "SPECULATIVE_DRAFT_ATTENTION_BACKEND": "triton"}
        sources |= dict.fromkeys(
            ("ATTENTION_BACKEND", "SPECULATIVE_DRAFT_ATTENTION_BACKEND"),
            f"{MODEL_CARD} asks for it on Blackwell, where {BACKENDS}, takes flashinfer (on sm_120 it takes triton)",
        )
    if cards > 1:
        variables["TENSOR_PARALLEL_SIZE"] = str(cards)
        sources["TENSOR_PARALLEL_SIZE"] = "all the cards that there are: the 20 attention heads split over 1, 2 or 4"
    sources["card"] = "; ".join(part for part in (source, arithmetic) if part)
    return Preset(name, card, weights, memory_gb, capability, product, variables, sources, cards)


def _context(weights: Weights, tokens: int) -> int | None:
    """The context to set; None where the model's own is right. (bf16 weights are for cards that have room for it.)"""
    most = weights.most_context or MODEL_CONTEXT_TOKENS
    if weights is BF16 or (tokens >= MODEL_CONTEXT_TOKENS and weights.most_context is None):
        return None
    return next(context for context in _CONTEXTS if context <= min(tokens, most))


# The names in nvidia-smi are those of https://docs.runpod.io/references/gpu-types, which also has the memory.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        preset_of("h100", "H100, 80 GB", BF16, 80, (9, 0), r"H100(?! NVL)", source=f"the defaults; {COOKBOOK}"),
        preset_of("h100-nvl", "H100 NVL, 94 GB", BF16, 94, (9, 0), r"H100 NVL", source="the defaults, as on an H100"),
        preset_of("a100-80gb", "A100, 80 GB", BF16, 80, (8, 0), r"A100.*80GB", source=f"the defaults; {MODEL_CARD}"),
        preset_of("h200", "H200, 141 GB", BF16, 141, (9, 0), r"\bH200", source=f"the defaults; {COOKBOOK}"),
        preset_of("b200", "B200, 180 GB", BF16, 180, (10, 0), r"\bG?B200", source=COOKBOOK),
        preset_of("b300", "B300, 288 GB", BF16, 288, (10, 3), r"\bG?B300", source=f"as on a B200: {COOKBOOK}"),
        preset_of("rtx-pro-6000", "RTX PRO 6000, 96 GB", BF16, 96, (12, 0), r"RTX PRO 6000", source="the defaults"),
        preset_of("l40s-fp8", "L40S, 48 GB", FP8, 48, (8, 9), r"L40S"),
        preset_of("l40-fp8", "L40, 48 GB", FP8, 48, (8, 9), r"L40\b"),
        preset_of("rtx6000ada-fp8", "RTX 6000 Ada, 48 GB", FP8, 48, (8, 9), r"RTX 6000 Ada"),
        preset_of("a6000-awq", "RTX A6000, 48 GB", AWQ, 48, (8, 6), r"RTX A6000"),
        preset_of("a40-awq", "A40, 48 GB", AWQ, 48, (8, 6), r"A40\b"),
        preset_of("rtx5090", "RTX 5090, 32 GB", AWQ, 32, (12, 0), r"RTX 5090"),
        preset_of("rtx4090-awq", "RTX 4090, 24 GB", AWQ, 24, (8, 9), r"RTX 4090"),
        preset_of("rtx3090-awq", "RTX 3090, 24 GB", AWQ, 24, (8, 6), r"RTX 3090"),
        preset_of("a5000-awq", "RTX A5000, 24 GB", AWQ, 24, (8, 6), r"RTX A5000"),
        preset_of("l4-awq", "L4, 24 GB", AWQ, 24, (8, 9), r"L4\b"),
    )
}
