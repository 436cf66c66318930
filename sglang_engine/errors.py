"""The engine's own error."""

from __future__ import annotations

from common.errors import StartError


class EngineError(StartError):
    """The engine did not start, or died. The message says why, as far as can be seen from outside.

    check and is_lasting: see StartError.
    """

    def __init__(self, message: str, *, check: str = "engine", is_lasting: bool = False) -> None:
        super().__init__(message, check=check, is_lasting=is_lasting)
