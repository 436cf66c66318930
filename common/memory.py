"""Memory that goes back to the system when it is freed."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # <malloc.h>
LARGE_BLOCK_BYTES = 256 * 1024


def give_back_large_blocks() -> None:
    """Have glibc take blocks of this size and more from the system one by one, and give each back when it is freed.

    By default it raises that limit to the size of the largest block it has seen freed, up to 32 MiB. After one input of
    20 MB, all such blocks would share a heap, and stay in it.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
