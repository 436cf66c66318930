"""Types of the command lines' arguments: a value that makes no sense is refused before anything runs."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError, as the others do."""
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")


def not_negative_whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else whole(text)


def _number(text: str, is_accepted: Callable[[float], bool], expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not is_accepted(number):
        raise ArgumentTypeError(f"{text!r}: expected a number {expected}")
    return number


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, lambda number: number > 0, "above 0")


def not_negative(text: str) -> float:
    """A number of at least 0."""
    return _number(text, lambda number: number >= 0, "of at least 0")


def picture(text: str) -> Path:
    """The name of a PNG file in a folder that is there."""
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: expected a name with .png, in a folder that is there")
    return path
