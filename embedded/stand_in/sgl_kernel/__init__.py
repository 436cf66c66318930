"""Stands in for `sgl_kernel`'s CPU build, which no package registry has.

SGLang 0.5.23 imports these eight names when it starts on a CPU. Seven belong to speculative decoding and one to moving
the KV cache; plain serving calls none of them. Each raises when it is called, so that nothing can go wrong silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def _missing(name: str) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} needs sgl_kernel's CPU build; this is its stand-in")

    return call


assign_draft_cache_locs_contiguous_cpu = _missing("assign_draft_cache_locs_contiguous_cpu")
assign_extend_cache_locs_cpu = _missing("assign_extend_cache_locs_cpu")
assign_req_to_token_pool_cpu = _missing("assign_req_to_token_pool_cpu")
build_tree_kernel_efficient_cpu = _missing("build_tree_kernel_efficient_cpu")
copy_all_layer_kv_cache_cpu = _missing("copy_all_layer_kv_cache_cpu")
fill_accept_out_cache_loc_cpu = _missing("fill_accept_out_cache_loc_cpu")
fill_bonus_tokens_cpu = _missing("fill_bonus_tokens_cpu")
verify_tree_greedy_cpu = _missing("verify_tree_greedy_cpu")
