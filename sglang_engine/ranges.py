"""The ranges of SGLang's numbers. Its parser takes any number; the ranges are checked later, in code, if at all.

scripts/update-options puts them into the table of options, where they are checked before anything starts, and which
docs/configuration.md shows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Range:
    """The bounds of a number: from `least` to `most`, both included; more than `above`, less than `below`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def has(self, number: float) -> bool:
        """Whether a number is within the bounds; neither NaN nor an infinity is."""
        return math.isfinite(number) and not (
            (self.least is not None and number < self.least)
            or (self.most is not None and number > self.most)
            or (self.above is not None and number <= self.above)
            or (self.below is not None and number >= self.below)
        )

    def __str__(self) -> str:
        """To complete "a number": `above 0 and below 1`."""
        if self.least is not None and self.most is not None:
            return f"from {self.least:g} to {self.most:g}"
        words = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)

    def bounds(self) -> dict[str, float]:
        """The bounds that there are, by name."""
        return {name: bound for name, bound in asdict(self).items() if bound is not None}


_COUNT, _NOT_NEGATIVE, _POSITIVE = Range(least=1), Range(least=0), Range(above=0)
_SHARE, _FRACTION = Range(above=0, below=1), Range(above=0, most=1)

# What SGLang 0.5.23 checks, by the function that does; the rest fails later, or is never noticed.
RANGES: dict[str, Range] = {
    # srt/arg_groups/validation_hook.py
    "--pp-max-micro-batch-size": _COUNT,
    "--base-gpu-id": _NOT_NEGATIVE,
    "--gpu-id-step": _COUNT,
    "--tokenizer-worker-num": _COUNT,
    "--detokenizer-worker-num": _COUNT,
    "--mm-processor-worker-num": _NOT_NEGATIVE,
    "--mm-io-worker-num": _NOT_NEGATIVE,
    "--schedule-conservativeness": _NOT_NEGATIVE,
    "--prefill-decode-interval": _NOT_NEGATIVE,
    "--prefill-decode-interval-min-bs": _NOT_NEGATIVE,
    "--sampling-mask-max-tokens": _COUNT,
    # serving_hook.py
    "--asr-max-buffer-seconds": _POSITIVE,
    "--asr-max-concurrent-sessions": _COUNT,
    "--grpc-response-timeout-secs": _POSITIVE,
    "--http2-max-concurrent-streams": Range(least=1, most=2**32 - 1),
    "--http2-initial-connection-window-size": Range(least=1024, most=2**31 - 1),
    # lora_hook.py
    "--max-loras-per-batch": _COUNT,
    "--max-lora-chunk-size": Range(least=16, most=128),
    "--lora-drain-wait-threshold": _NOT_NEGATIVE,
    # hicache_hook.py, pd_disaggregation_hook.py, mamba_hook.py, attention_hook.py
    "--hicache-host-memory-fraction": _FRACTION,
    "--disaggregation-decode-host-receive-threshold": Range(least=0, most=1),
    "--mamba-cache-philox-rounds": _NOT_NEGATIVE,
    "--linear-replayssm-cache-len": _COUNT,
    # parallel_hook.py
    "--dcp-size": _COUNT,
    "--attn-dp-size": _COUNT,
    "--elastic-ep-scale-timeout": _POSITIVE,
    # speculative_hook.py
    "--speculative-draft-window-size": _COUNT,
    "--speculative-num-steps": _COUNT,
    "--speculative-eagle-topk": _COUNT,
    "--speculative-num-draft-tokens": _COUNT,
    # managers/tp_worker.py, model_executor/pool_configurator.py, mem_cache/unified_memory_pool.py
    "--max-running-requests": _COUNT,
    "--max-total-tokens": _COUNT,
    "--page-size": _COUNT,
    # By their meaning: with others, SGLang ends in a traceback far from the cause, or serves wrongly.
    "--mem-fraction-static": _SHARE,
    "--context-length": _COUNT,
    "--tp-size": _COUNT,
    "--dp-size": _COUNT,
    "--pp-size": _COUNT,
    "--stream-interval": _COUNT,
    "--port": Range(least=1, most=65535),
}
