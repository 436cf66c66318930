"""Whether the checkpoint in a folder is up to date with its sources. Not in `tiny_glm`, which would load torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SOURCES = [Path(__file__).with_name(name) for name in ("tiny_glm.py", "conversations.py", "chat_template.jinja")]
_MARKER = "made_from.txt"


def is_made(folder: Path) -> bool:
    """Whether `folder` contains an up-to-date checkpoint."""
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text() == _fingerprint()


def mark(folder: Path) -> None:
    """Record in `folder` what its checkpoint was made from."""
    (folder / _MARKER).write_text(_fingerprint())


def _fingerprint() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
