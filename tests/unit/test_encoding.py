"""What counts as JSON, and how it is written."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import uuid
from typing import Any

import pytest

from serverless.encoding import NotJsonError, copied, encode


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    """A text of its own kind."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 1.5, True, None, "é"]}, '{"a":[1,1.5,true,null,"é"]}'),
        ((1, 2), "[1,2]"),
        ([float("nan"), float("-inf")], "[null,null]"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), '"2026-01-02T03:04:05+00:00"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        ([Point(1), Colour.RED, Text("own")], '[{"x":1},"red","own"]'),
        ({1: "a"}, '{"1": "a"}'),
        (10**30, str(10**30)),
        ("\ud800", '"\\ud800"'),
    ],
)
def test_value_is_written_as_json(value: Any, text: str) -> None:
    assert encode(value).decode() == text


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), range(3), {(1, 2): 3}, [map(str, [1])]])
def test_what_is_not_json_is_told(value: Any) -> None:
    for read in (encode, copied):
        with pytest.raises(NotJsonError, match="it is not JSON"):
            read({"output": value})


def test_value_that_contains_itself_is_not_json() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotJsonError):
        encode(endless)


def test_copy_is_what_its_reader_sees() -> None:
    value = {"when": datetime.date(2026, 1, 2), "list": [(1, 10**30)]}
    assert copied(value) == {"when": "2026-01-02", "list": [[1, 10**30]]}
