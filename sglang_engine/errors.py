"""The engine's own error."""

from __future__ import annotations

from common.errors import StartError


class EngineError(StartError):
    """The engine did not start, or died. The message says why, as far as can be seen from outside."""
