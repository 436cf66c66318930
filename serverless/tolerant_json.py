"""JSON from outside, which may be a bomb: nested without end, or with numbers of a million digits.

Python's parser refuses both, and the whole text with them. If several jobs come in one text, that would lose them all;
here the hostile part is cut out, so that the rest can be read and its sender gets an answer.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

from common.large_json import LARGE_BYTES, LargeJson

# Deeper parts are replaced by null. Far above the limit on a job (common.variables.MAX_JSON_LEVELS), so that a job that
# was cut is still refused as too deep; far below Python's recursion limit of 1000.
KEPT_LEVELS = 400

_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*(?:,\s*|(?=\]))")
_OUTLINE_CHARACTERS = 1000

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]+|[\]}]+', re.DOTALL)


async def parse_tolerantly(body: bytes) -> Any:
    """The value of a JSON text; parts that are too deep become null, and integers that are too long become floats.

    Raises ValueError for anything but JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # Rare, but a bomb may be 20 MB: not on the event loop.
        return await asyncio.to_thread(_parse_with_care, body)


def _parse_with_care(body: bytes) -> Any:
    return json.loads(cut_to_depth(body.decode("utf-8", "replace"), KEPT_LEVELS), parse_int=_whole_number)


def sift(body: bytes) -> Iterator[Any]:
    """The values of a JSON array, one at a time; for anything else, the value itself. A task for `HelperProcess`.

    A large `input` in an object comes as LargeJson. Raises ValueError for anything but JSON.
    """
    done = 0
    try:
        for value in _elements(body.decode("utf-8", "replace").strip()):
            yield _with_large_input(value)
            done += 1
    except (ValueError, RecursionError):
        whole = _parse_with_care(body)
        for value in (whole if isinstance(whole, list) else [whole])[done:]:
            yield _with_large_input(value)


def _elements(text: str) -> Iterator[Any]:
    """The elements of an array, each read when it is asked for, so that only one of them is in memory at a time."""
    decoder = json.JSONDecoder()
    if not text.startswith("["):
        yield decoder.decode(text)
        return
    position = _SPACE.match(text, 1).end()  # type: ignore[union-attr]
    while text[position : position + 1] != "]":
        value, position = decoder.raw_decode(text, position)
        yield value
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            raise ValueError("not an array")
        position = separator.end()


def _with_large_input(job: Any) -> Any:
    if not isinstance(job, dict) or "input" not in job:
        return job
    text = json.dumps(job["input"]).encode()
    if len(text) < LARGE_BYTES:
        return job
    return job | {"input": LargeJson(text, _outline(job["input"]))}


def _outline(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    small = (str, int, float, bool)
    return {
        key: member if isinstance(member, small) and len(str(member)) <= _OUTLINE_CHARACTERS else None
        for key, member in value.items()
    }


def cut_to_depth(text: str, levels: int) -> str:
    """The JSON text with every array and object below that many levels replaced by null. Does not recurse."""
    kept: list[str] = []
    depth, kept_to = 0, 0
    for token in _TOKEN.finditer(text):
        first, size = text[token.start()], len(token.group())
        if first in "[{":
            if depth <= levels < depth + size:
                kept += text[kept_to : token.start() + levels - depth], "null"
            depth += size
        elif first in "]}":
            if depth > levels >= depth - size:
                kept_to = token.start() + depth - levels
            depth -= size
    if depth <= levels:
        kept.append(text[kept_to:])
    return "".join(kept)


def _whole_number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # over 4300 digits, sys.set_int_max_str_digits
        return float(digits)
