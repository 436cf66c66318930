"""Bombs are cut down; everything else is read as it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless.tolerant_json import KEPT_LEVELS, cut_to_depth, parse_tolerantly

pytestmark = pytest.mark.anyio

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def cut(value: Any, levels: int) -> Any:
    """The obvious way, which takes a stack."""
    if not isinstance(value, (list, dict)):
        return value
    if levels == 0:
        return None
    if isinstance(value, dict):
        return {key: cut(inner, levels - 1) for key, inner in value.items()}
    return [cut(inner, levels - 1) for inner in value]


@given(values, st.integers(0, 6), st.sampled_from([None, 1]), st.booleans())
def test_cutting_replaces_just_what_is_too_deep(value: Any, levels: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert json.loads(cut_to_depth(text, levels)) == cut(value, levels)


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[{"]":', "}]")])
async def test_bomb_among_jobs_loses_no_other_job(begin: str, end: str) -> None:
    bomb = begin * 200_000 + "1" + end * 200_000
    body = f'[{{"id": "a", "input": {{"x": "]}}[{{\\""}}}}, {{"id": "b", "input": {bomb}}}, {{"id": "c", "input": 1}}]'
    first, second, third = await parse_tolerantly(body.encode())
    assert first == {"id": "a", "input": {"x": ']}[{"'}}
    assert second["id"] == "b"
    assert depth(second) == KEPT_LEVELS - 1
    assert third == {"id": "c", "input": 1}


async def test_number_of_many_digits_loses_no_job() -> None:
    [first, second] = await parse_tolerantly(b'[{"id": "a", "n": 1%s}, {"id": "b", "n": 5}]' % (b"0" * 5000))
    assert first["n"] == math.inf
    assert second == {"id": "b", "n": 5}


@pytest.mark.parametrize("body", [b"{", b"[1,]", b"nope", b'{"a": }', b"[" * 100_000, b"]" * 10, b"\xff\xfe"])
async def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        await parse_tolerantly(body)
