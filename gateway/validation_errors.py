"""What is wrong with a request, in words: pydantic's validation errors, which SGLang passes on in Python's notation.

SGLang 0.5.23 answers a request that its models refuse with FastAPI's `str(RequestValidationError)`:

    1 validation error:
      {'type': 'float_parsing', 'loc': ('body', 'temperature'), 'msg': 'Input should be a number', 'input': 'hot'}

and, where a field may have several types, an error for each of them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from itertools import islice

MOST_PLACES, MOST_REASONS = 3, 2
_REASON = r"""'(?:[^'\\\n]|\\.){1,500}'|"(?:[^"\\\n]|\\.){1,500}\""""
_ENTRY = re.compile(rf"^  \{{'type': '\w+', 'loc': (\(.{{1,999}}?\)), 'msg': ({_REASON})", re.MULTILINE)
_HEADER = re.compile(r"\d+ validation errors?:\n")
# Steps of a path that name no field: the kinds among which pydantic looked for one that fits.
_FIELD = re.compile(r"[a-z_][a-z0-9_]*")
_KINDS = frozenset({"str", "int", "float", "bool", "dict", "list"})


@dataclass(frozen=True)
class Wrong:
    """`param` is the first field that is wrong, as OpenAI names it (`messages[0].role`); None if no field is named."""

    message: str
    param: str | None


def read_validation_errors(text: str) -> Wrong | None:
    """What such a text says, as `field: reason` for up to three fields; None if it is none."""
    if not _HEADER.match(text):
        return None
    reasons: dict[str, list[str]] = {}
    for loc, reason in _ENTRY.findall(text):
        try:
            steps, said = ast.literal_eval(loc), str(ast.literal_eval(reason))
        except (ValueError, SyntaxError):
            continue
        of_place = reasons.setdefault(_place(steps), [])
        said = said.removeprefix("Value error, ").rstrip(".")
        if said not in of_place:
            of_place.append(said)
    if not reasons:
        return None
    shown = [_sentence(place, said) for place, said in islice(reasons.items(), MOST_PLACES)]
    more = len(reasons) - len(shown)
    return Wrong("; ".join(shown) + (f"; and {more} more" if more else ""), next(iter(reasons)) or None)


def _sentence(place: str, reasons: list[str]) -> str:
    text = ", or ".join(reasons[:MOST_REASONS])
    return f"{place}: {text}" if place else text


def _place(steps: tuple[str | int, ...]) -> str:
    path = ""
    for step in steps[1:] if steps[:1] == ("body",) else steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _FIELD.fullmatch(step) and not (path and step in _KINDS):
            path += f".{step}" if path else step
    return path
