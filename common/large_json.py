"""JSON too large to be parsed on the event loop: 20 MB of it block the interpreter for a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Anything smaller takes a few milliseconds at most.
LARGE_BYTES = 256 * 1024


@dataclass(frozen=True)
class LargeJson:
    """A value as JSON text, and an outline of it.

    outline: for an object, its small members as they are, and None in place of the others; for anything else, None.
    """

    text: bytes
    outline: Any = None
