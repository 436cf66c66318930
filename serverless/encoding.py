"""Values as JSON, the same in every mode: what a handler gives is or is not JSON, wherever it runs."""

from __future__ import annotations

import json
from typing import Any

import orjson


class NotJsonError(ValueError):
    """The value cannot be written as JSON."""


def encode(value: Any) -> bytes:
    """The value as JSON.

    More than the json module takes: dates and times become ISO 8601 text, UUIDs text, dataclasses objects, members of
    enumerations their values. NaN and infinities, which JSON does not have, become null. Raises NotJsonError.
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # half of a surrogate pair, a very long number, keys that are numbers, or not JSON
        pass
    try:
        return json.dumps(value, default=lambda part: orjson.loads(orjson.dumps(part))).encode()
    except (TypeError, ValueError, RecursionError):
        raise NotJsonError("it is not JSON") from None


def copied(value: Any) -> Any:
    """A copy of it, as its reader will see it. Raises NotJsonError."""
    return json.loads(encode(value))
