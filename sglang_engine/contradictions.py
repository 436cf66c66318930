"""Options that do not go together, as far as that can be known before SGLang starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path

from common.settings import FALSE

# GLM-4.7-Flash's own heads. Its experts are 1,536 wide, which five GPUs cannot share either.
GLM_HEADS, GLM_SPLITS = 20, (1, 2, 4)
_EAGLE = ("EAGLE", "EAGLE3", "NEXTN")
_STEPS, _TOPK, _TOKENS = "--speculative-num-steps", "--speculative-eagle-topk", "--speculative-num-draft-tokens"
# With these, attention is not split over all the GPUs of `--tp-size`.
_OTHER_SPLITS = ("--enable-dp-attention", "--attn-dp-size", "--attn-cp-size")


def contradictions(given: Mapping[str, str], refused: Set[str], name_of: Callable[[str], str]) -> Iterator[str]:
    """What is wrong between options, a sentence each.

    given: flag -> value of everything that is set. refused: the flags whose values are wrong by themselves, about which
    nothing more is said. name_of: the variable of a flag.
    """
    if not refused & {"--tp-size", "--model-path"}:
        yield from _heads(given, name_of)
    if refused & {_STEPS, _TOPK, _TOKENS}:
        return
    if given.get("--speculative-algorithm", "").upper() in _EAGLE and not _is_on(given, "--speculative-adaptive"):
        yield from _eagle(given, name_of)


def _heads(given: Mapping[str, str], name_of: Callable[[str], str]) -> Iterator[str]:
    size, model = given.get("--tp-size", ""), given.get("--model-path", "")
    if not size.isdigit() or not model or any(_is_on(given, flag) for flag in _OTHER_SPLITS):
        return
    is_glm = "glm-4.7-flash" in model.lower()
    heads = GLM_HEADS if is_glm else _heads_of_folder(model)
    splits = GLM_SPLITS if is_glm else tuple(count for count in range(1, heads + 1) if heads % count == 0)
    if heads and int(size) not in splits:
        accepted = f"{', '.join(map(str, splits[:-1]))} or {splits[-1]}" if len(splits) > 1 else str(splits[0])
        yield f"{name_of('--tp-size')}={size}: the model's {heads} attention heads split over {accepted} GPUs"


def _heads_of_folder(model: str) -> int:
    """How many attention heads a model in a folder has; 0 if that cannot be told."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        return int(config.get("text_config", config).get("num_attention_heads", 0))
    return 0


def _eagle(given: Mapping[str, str], name_of: Callable[[str], str]) -> Iterator[str]:
    """EAGLE's three numbers: SGLang 0.5.23 takes none of them or all, and a tree must have room for its tokens."""
    flags = (_STEPS, _TOPK, _TOKENS)
    missing = [name_of(flag) for flag in flags if not given.get(flag)]
    if missing:
        if len(missing) < len(flags):
            there = " and ".join(name_of(flag) for flag in flags if given.get(flag))
            yield f"{' and '.join(missing)} must be set beside {there}: EAGLE takes all three numbers or none"
        return
    values = [given[flag] for flag in flags]
    if not all(value.isdigit() for value in values):
        return  # from SGLANG_EXTRA_ARGS, which is passed on as it is
    steps, topk, tokens = map(int, values)
    most = steps + 1 if topk == 1 else 1 + topk + (steps - 1) * topk**2
    if topk == 1 and tokens != most:
        yield (
            f"{name_of(_TOKENS)}={tokens}: with {name_of(_STEPS)}={steps} and {name_of(_TOPK)}=1, a chain, it must be "
            f"{most}, one more than the steps"
        )
    elif tokens > most:
        yield f"{name_of(_TOKENS)}={tokens}: {name_of(_STEPS)}={steps} and {name_of(_TOPK)}={topk} give {most} at most"


def _is_on(given: Mapping[str, str], flag: str) -> bool:
    return given.get(flag, "false").lower() not in FALSE
