"""What a GPU needs, as plain data: `PRESET=…` sets these variables, and any variable in the environment overrides them.

Only settings with a source are here. None of them has been run on its card by the authors of this worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_CARD = "https://huggingface.co/zai-org/GLM-4.7-Flash"
COOKBOOK = "https://docs.sglang.io/cookbook/autoregressive/GLM/GLM-4.7-Flash"
FP8_CARD = "https://huggingface.co/mratsim/GLM-4.7-Flash-FP8"
SM_120 = "https://github.com/sgl-project/sglang/issues/18874: garbage with flashinfer on sm_120"
AWQ_CARD = "https://huggingface.co/QuantTrio/GLM-4.7-Flash-AWQ"

# GLM-4.7-Flash's KV cache is 47 layers x (512 + 64) values x 2 bytes = 54 KB a token: 32,768 tokens are 1.8 GB.
_KV_ARITHMETIC = "arithmetic: 54 KB of KV cache per token next to the weights"


@dataclass(frozen=True)
class Preset:
    """The variables for one card, and where each of them comes from."""

    name: str
    card: str
    variables: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """Variable -> source; `card` for the source of the preset as a whole."""


_TRITON = {"ATTENTION_BACKEND": "triton", "SPECULATIVE_DRAFT_ATTENTION_BACKEND": "triton"}
_TRITON_SOURCES = dict.fromkeys(_TRITON, f"{MODEL_CARD} asks for it on Blackwell")

_AWQ = {
    "MODEL_NAME": "QuantTrio/GLM-4.7-Flash-AWQ",
    "CONTEXT_LENGTH": "32768",
    "SPECULATIVE_ALGORITHM": "",
}
_AWQ_SOURCES = {
    "MODEL_NAME": f"{AWQ_CARD}: 4-bit weights, 18-20 GB",
    "CONTEXT_LENGTH": _KV_ARITHMETIC,
    "SPECULATIVE_ALGORITHM": "arithmetic: no room for the draft layer next to the weights",
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("h100", "H100, 80 GB", sources={"card": f"the defaults; {COOKBOOK}"}),
        Preset("a100-80gb", "A100, 80 GB", sources={"card": f"the defaults: bf16 weights of 62 GB fit; {MODEL_CARD}"}),
        Preset("h200", "H200, 141 GB", sources={"card": f"the defaults; {COOKBOOK}"}),
        Preset("b200", "B200, 180 GB", _TRITON, _TRITON_SOURCES | {"card": COOKBOOK}),
        Preset(
            "l40s-fp8",
            "L40S, 48 GB",
            {"MODEL_NAME": "mratsim/GLM-4.7-Flash-FP8", "CONTEXT_LENGTH": "131072", "SPECULATIVE_ALGORITHM": ""},
            {
                "MODEL_NAME": f"{FP8_CARD}: FP8 weights of 31 GB, for Ada and newer",
                "CONTEXT_LENGTH": f"{FP8_CARD} was tested with it; {_KV_ARITHMETIC}",
                "SPECULATIVE_ALGORITHM": f"{FP8_CARD} was tested without a draft layer",
            },
        ),
        Preset("rtx4090-awq", "RTX 4090, 24 GB", _AWQ, _AWQ_SOURCES),
        Preset(
            "rtx5090",
            "RTX 5090, 32 GB",
            _AWQ | {"ATTENTION_BACKEND": "triton"},
            _AWQ_SOURCES | {"ATTENTION_BACKEND": f"{MODEL_CARD} asks for it on Blackwell; {SM_120}"},
        ),
    )
}
