"""docs/configuration.md, from the table of options, the worker's settings and the presets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.variables import VARIABLES
from engine import DEFAULTS, EXTRA_ARGS, OPTIONS, RESERVED, RUNPOD_NAMES
from sglang_engine import options
from sglang_engine.options import Kind, Option, Type
from sglang_engine.presets import ALL_WEIGHTS, PRESETS

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"

# The options that matter for GLM-4.7-Flash, in groups: the variable and what it does.
THAT_MATTER: dict[str, dict[str, str]] = {
    "The model": {
        "MODEL_NAME": "A Hugging Face repository or a folder. bf16 weights are 62 GB, for an 80 GB card. For 48 GB: "
        "an FP8 variant (31 GB); for 24 and 32 GB: AWQ or NVFP4 (18-20 GB). Those are made by the community.",
        "REVISION": "A branch, tag or commit of that repository, so that a new upload changes nothing here.",
        "SERVED_MODEL_NAME": "The name by which clients ask for the model.",
        "QUANTIZATION": "Only needed if the checkpoint does not say. `fp8` quantises bf16 weights as they load.",
        "TOOL_CALL_PARSER": "Turns the model's tool calls into `tool_calls`. `glm47` is GLM-4.7's own format.",
        "REASONING_PARSER": "Moves the model's reasoning from `content` to `reasoning_content`.",
    },
    "Memory and context": {
        "MEM_FRACTION_STATIC": "The share of the GPU's memory for weights and KV cache together. The rest is for "
        "activations and CUDA graphs: lower it after an out-of-memory error, raise it for more concurrent tokens.",
        "CONTEXT_LENGTH": "The longest request, prompt and answer together. The model's own is 202,752 tokens, which "
        "take 11 GB of KV cache (54 KB each): set less if requests are shorter and the card is small.",
        "KV_CACHE_DTYPE": "`fp8_e4m3` halves the KV cache, at some cost in accuracy.",
        "MAX_RUNNING_REQUESTS": "The most requests in one batch. More wait inside SGLang.",
        "CHUNKED_PREFILL_SIZE": "How many prompt tokens are computed at once. With smaller chunks, long prompts hold "
        "up running streams less and need less memory. -1 turns chunking off.",
    },
    "Several GPUs": {
        "TENSOR_PARALLEL_SIZE": "Splits every layer over this many GPUs. With 20 attention heads: 1, 2 or 4.",
        "DATA_PARALLEL_SIZE": "Whole copies of the model, one per GPU: more throughput, no more memory per request.",
    },
    "Speculative decoding": {
        "SPECULATIVE_ALGORITHM": "`EAGLE` lets the model's own draft layer guess ahead: faster streams at low and "
        "medium load. Empty turns it off, which frees its memory and may give more throughput at full load.",
        "SPECULATIVE_NUM_STEPS": "How many tokens are guessed in a row.",
        "SPECULATIVE_EAGLE_TOPK": "How many guesses per step. 1 is a chain, more than 1 a tree.",
        "SPECULATIVE_NUM_DRAFT_TOKENS": "How many guessed tokens are checked at once: steps + 1 for a chain.",
    },
    "Kernels": {
        "ATTENTION_BACKEND": "By default SGLang chooses for the card. On Blackwell, the model card asks for `triton`.",
        "DISABLE_CUDA_GRAPH": "Starts faster and saves memory; every token is slower.",
    },
    "Cold start": {
        "WEIGHT_LOADER_PREFETCH_CHECKPOINTS": "Reads the checkpoint's files ahead into the page cache: loads faster "
        "from a network volume.",
        "STARTUP_WEIGHT_LOAD_MODE": "`overlap` reads the weights while CUDA graphs are captured, instead of before.",
        "LOAD_FORMAT": "How weights are read. `auto` takes safetensors; `dummy` makes random ones, to test a start.",
    },
    "Metrics, keys, adapters": {
        "ENABLE_METRICS": "Prometheus metrics on the engine's `/metrics`, which is not open to jobs: scrape the "
        "engine's port.",
        "API_KEY": "SGLang asks for it, and the worker sends it. For an engine that others can reach (`HOST`).",
        "LORA_PATHS": "Adapters, `name=path name=path` or a JSON array; clients choose one by naming it as the model.",
    },
}

INTRODUCTION = """\
# Configuration

Every setting is an environment variable. A `.env` file in the current folder is read as well; the environment wins over
it. `python engine.py --print` shows the resulting command line and the source of each setting (`.env`,
the environment, a preset, the image, a default), and starts nothing.

- An empty value turns a default off: `SPECULATIVE_ALGORITHM=` serves without EAGLE.
- Flags take `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`.
- Lists are split as a shell would, or are JSON arrays.
- Everything is checked before anything starts, and all mistakes are reported at once; the exit code is then 2.
  (A deployed worker [tells callers](operations.md#a-start-that-fails) before it exits.)
- Two names of one option may both be set if the value is the same.
- `SGLANG_EXTRA_ARGS` is split as a shell would, added unchanged to the end of SGLang's command line, and wins.
- Ranges are checked, and what does not go together: tensor parallelism against the model's attention heads, EAGLE's
  steps against its draft tokens. An empty variable that takes something away from a preset gets a warning.
- A variable that looks like a misspelt option, or like one of another version, gets a warning with the right name.

This page is generated by `scripts/update-options`; a test checks that it is up to date.
"""


PRESETS_INTRODUCTION = """\
`PRESET=<name>` sets what a card needs; any variable overrides it. None has been run on its card yet.

`PRESET=auto` asks nvidia-smi what there is and takes the card's preset; on another card, or on a MIG slice, the best
weights that fit by the same arithmetic: bf16, else FP8 (compute capability 8.9 and newer), else AWQ. Several cards of
one kind share the model (`TENSOR_PARALLEL_SIZE` 2 or 4), unless `TENSOR_PARALLEL_SIZE` or `DATA_PARALLEL_SIZE` says
otherwise; of several kinds, the first in nvidia-smi's order counts, and `CUDA_VISIBLE_DEVICES` chooses another. The log
and `engine.py --print` say what was chosen and why; where nothing fits, the start is refused with the reason. `auto` is
the image's own default, as long as nothing else names the model: `MODEL_NAME`, another `PRESET`,
or a model inside the image. `PRESET=off`, or an empty one, chooses nothing.
"""


def document() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## What matters for GLM-4.7-Flash"
    for title, group in THAT_MATTER.items():
        yield f"\n### {title}\n"
        yield from _table(
            ("variable", "default", "what it does"), [(_code(n), _default(n), text) for n, text in group.items()]
        )
    yield "\n## Presets\n"
    yield PRESETS_INTRODUCTION
    rows = [
        (
            _code(preset.name),
            preset.card,
            "<br>".join(_code(f"{n}={v}") for n, v in preset.variables.items()) or "the defaults",
        )
        for preset in PRESETS.values()
    ]
    yield from _table(("preset", "card", "sets"), rows)
    yield "\nSources:\n"
    for weights in (weights for weights in ALL_WEIGHTS if weights.sources):
        yield f"- {weights.name} weights: " + _sources(weights.sources)
    for preset in PRESETS.values():
        own = {name: source for name, source in preset.sources.items() if name not in preset.weights.sources}
        yield f"- `{preset.name}`: " + _sources(own)
    yield "\n## The worker\n"
    settings = [(_code(v.name), _code(v.default) if v.default else "", v.expected, v.meaning) for v in VARIABLES]
    yield from _table(("variable", "default", "accepted", "meaning"), settings)
    yield "\n## Names of other workers\n"
    yield "Each of these is another name for an option of SGLang.\n"
    yield from _table(
        ("variable", "the same as"), [(_code(name), _code(known)) for name, known in RUNPOD_NAMES.items()]
    )
    yield "\n## Reserved\n"
    yield f"These are refused, in `{EXTRA_ARGS}` too.\n"
    yield from _table(("variable", "why"), [(_code(name), why) for name, why in RESERVED.items()])
    yield f"\n## Every option of SGLang {options.sglang_version()}\n"
    yield "Without a default here, SGLang's own applies; `python -m sglang.launch_server --help` shows it.\n"
    table = [option for option in options.load() if option.name not in RESERVED]
    yield from _table(("variable", "flag", "type", "default", "accepted"), [_row(option) for option in table])


def _sources(sources: dict[str, str]) -> str:
    return "; ".join(source if name == "card" else f"`{name}`: {source}" for name, source in sources.items())


def _row(option: Option) -> tuple[str, ...]:
    names = "<br>".join(_code(name) for name in (option.name, *option.aliases))
    kind = {Kind.VALUE: option.type, Kind.LIST: f"list of {option.type}", Kind.JSON: "JSON"}.get(
        option.kind, option.kind
    )
    return names, _code(option.flag), str(kind), _default(option.name), _accepted(option)


def _accepted(option: Option) -> str:
    if option.choices:
        return ", ".join(_code(choice) for choice in option.choices)
    return "" if option.type in (Type.TEXT, Type.BOOLEAN) else option.expected().split(":")[-1].strip()


def _default(name: str) -> str:
    flag = OPTIONS[name].flag
    return next((_code(value) for known, value in DEFAULTS.items() if OPTIONS[known].flag == flag), "")


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
