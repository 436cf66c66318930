"""Formatting of numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def milliseconds(seconds: float) -> str:
    """Seconds as whole milliseconds."""
    return f"{seconds * 1000:.0f} ms"


def percentile(values: list[float], percent: int) -> float:
    """The value that this share of the values do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def percentile_95(values: list[float]) -> float:
    """The value that 95 % of the values do not exceed."""
    return percentile(values, 95)
