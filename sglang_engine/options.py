"""SGLang's launch options as environment variables: the table, how a value becomes words of a command line, and which
words of a command line belong to which option.

The table is sglang_options.json: one row per option of the pinned SGLang, made by scripts/update-options from SGLang's
own parser.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from common.settings import FALSE as FALSE
from common.settings import TRUE as TRUE
from sglang_engine.ranges import Range

TABLE_FILE = Path(__file__).with_name("sglang_options.json")

# What argparse reads as a negative number rather than an option (_negative_number_matcher).
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
_SIZE = re.compile(r"\d+(\.\d+)?[kMGT]|\d+[KMGT]i")  # SGLang's human_readable_int

# Text to SGLang's parser, but later read as a JSON object.
OBJECTS_AS_TEXT = frozenset({"--json-model-override-args", "--model-loader-extra-config"})

_SECRET_FLAGS = frozenset({"--api-key", "--admin-api-key", "--ssl-keyfile-password"})


class Kind(StrEnum):
    """How an option is written on the command line."""

    VALUE = "value"  # --x V
    FLAG = "flag"  # --x when true, nothing when false
    PAIR = "flag pair"  # --x when true, --no-x when false
    LIST = "list"  # --x V V V
    JSON = "JSON"  # --x '{…}'
    OPTIONAL = "optional value"  # --x, or --x V


class Type(StrEnum):
    """What a value is."""

    TEXT = "text"
    INTEGER = "whole number"
    NUMBER = "number"
    SIZE = "size"  # a whole number, or one with a unit: 128k, 64Ki
    BOOLEAN = "boolean"
    OBJECT = "object"
    ARRAY = "array"
    ANY = "any"


@dataclass(frozen=True)
class Option:
    """One launch option. `name` is its variable, `aliases` are the variables of its flag's other spellings."""

    name: str
    flag: str
    kind: Kind
    type: Type
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    may_be_empty: bool = False
    """Whether an empty list is accepted."""
    range: Range | None = None
    """The bounds of a number."""

    @property
    def is_secret(self) -> bool:
        """Whether its value must never be shown."""
        return self.flag in _SECRET_FLAGS

    @property
    def negative_flag(self) -> str:
        """The flag that turns a pair off."""
        return f"--no-{self.flag[2:]}"

    def expected(self) -> str:
        """What is accepted, to complete "expected …"."""
        values = f"one of {', '.join(self.choices)}" if self.choices else _NAMES[self.type]
        if self.range is not None:
            values = f"{_NAMES[self.type]}{',' if self.type is Type.SIZE else ''} {self.range}"
        match self.kind:
            case Kind.LIST:
                each = f"each {values}" if self.choices or self.type is not Type.TEXT else "words"
                return f"a list, split as a shell would, or a JSON array: {each}"
            case Kind.OPTIONAL:
                return f"{_NAMES[Type.BOOLEAN]}, or {values}"
        return values

    def arguments(self, value: str, name: str | None = None) -> list[str]:
        """The command-line words for a value, with the flag spelt as in the variable `name`.

        Raises ValueError for a value that is not accepted; its text completes "expected …".
        """
        flag = flag_of(name) if name in self.aliases else self.flag
        match self.kind:
            case Kind.FLAG:
                return [flag] if self._boolean(value) else []
            case Kind.PAIR:
                return [flag if self._boolean(value) else self.negative_flag]
            case Kind.OPTIONAL if value.lower() in TRUE + FALSE:
                return [flag] if value.lower() in TRUE else []
            case Kind.LIST:
                return [flag, *self._words(value)]
        self._check(value)
        if value.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(value):
            return [f"{flag}={value}"]  # else it would be read as an option
        return [flag, value]

    def check_range(self, value: str) -> None:
        """Refuse a number, already found to be one, that is out of bounds.

        Apart from `arguments`, which takes what SGLang's parser takes. Raises ValueError like it.
        """
        if self.range is not None and not self.range.has(_CHECKS[self.type](value)):
            raise ValueError(self.expected())

    def _boolean(self, value: str) -> bool:
        if value.lower() not in TRUE + FALSE:
            raise ValueError(self.expected())
        return value.lower() in TRUE

    def _words(self, value: str) -> list[str]:
        try:
            items = json.loads(value) if value.startswith("[") else shlex.split(value)
        except ValueError:
            raise ValueError(self.expected()) from None
        words = [item if isinstance(item, str) else json.dumps(item) for item in items]
        if not words and not self.may_be_empty:
            raise ValueError(f"{self.expected()}, at least one")
        for word in words:
            self._check(word)
            if word.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(word):
                raise ValueError(f"{self.expected()}, none of them starting with a dash")
        return words

    def _check(self, value: str) -> None:
        if self.choices is not None:
            if _normal(self.type, value) not in self.choices:
                near = difflib.get_close_matches(value, self.choices, n=1)
                raise ValueError(self.expected() + (f" (did you mean {near[0]!r}?)" if near else ""))
            return
        try:
            _CHECKS[self.type](value)
        except ValueError:
            raise ValueError(self.expected()) from None


@cache
def load() -> tuple[Option, ...]:
    """The options of the pinned SGLang, in its own order."""
    return tuple(
        Option(
            name=row["name"],
            flag=row["flag"],
            kind=Kind(row["kind"]),
            type=Type.OBJECT if row["flag"] in OBJECTS_AS_TEXT else Type(row["type"]),
            choices=None if row["choices"] is None else tuple(row["choices"]),
            aliases=tuple(row["aliases"]),
            may_be_empty=row["may_be_empty"],
            range=Range(**row["range"]) if "range" in row else None,
        )
        for row in _table()["options"]
    )


def sglang_version() -> str:
    """The version of SGLang that the table describes."""
    version: str = _table()["sglang"]
    return version


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
    return table


def variable_name(flag: str) -> str:
    """The variable of a flag: `--tp-size` is TP_SIZE."""
    return flag.removeprefix("--").upper().replace("-", "_")


def flag_of(name: str) -> str:
    """The flag of a variable: TP_SIZE is `--tp-size`."""
    return f"--{name.lower().replace('_', '-')}"


def option_of(flag: str) -> Option | None:
    """The option of a flag as argparse reads it: any spelling, or the beginning of one if it is unambiguous."""
    flags = _flags()
    if flag in flags or not flag.startswith("--"):
        return flags.get(flag)
    begun = {option.flag: option for full, option in flags.items() if full.startswith(flag)}
    return next(iter(begun.values())) if len(begun) == 1 else None


def values_of(words: list[str]) -> Iterator[tuple[str, str]]:
    """The flags among the words of a command line, in their option's first spelling, each with the value after it."""
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if (option := option_of(flag)) is not None:
            yield option.flag, value if equals else " ".join(words[position + 1 : position + 2])


def with_value(words: list[str], flag: str, value: str) -> list[str]:
    """The words with the value of a flag replaced, however the flag is spelt there."""
    changed: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_flag = (option := option_of(name)) is not None and option.flag == flag
        changed.append(value if is_value else f"{name}={value}" if is_flag and equals else word)
        is_value = is_flag and not equals
    return changed


def masked(words: list[str]) -> list[str]:
    """The words with the values of secret options replaced."""
    shown, hide = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_secret = (option := option_of(flag)) is not None and option.is_secret
        shown.append("***" if hide else f"{flag}=***" if is_secret and equals else word)
        hide = is_secret and not equals
    return shown


def secrets_of(words: Iterable[str]) -> Iterator[str]:
    """The values of secret options among the words of a command line."""
    for flag, value in values_of(list(words)):
        if (option := option_of(flag)) is not None and option.is_secret:
            yield value


@cache
def _flags() -> dict[str, Option]:
    """Every spelling of every option's flag."""
    return {flag_of(name): option for option in load() for name in (option.name, *option.aliases)}


_NAMES = {
    Type.TEXT: "text",
    Type.INTEGER: "a whole number",
    Type.NUMBER: "a number",
    Type.SIZE: "a whole number, or one with a unit such as 128k or 64Ki",
    Type.BOOLEAN: "true or false",
    Type.OBJECT: "a JSON object",
    Type.ARRAY: "a JSON array",
    Type.ANY: "JSON",
}


def size_of(value: str) -> float:
    """The number that a size means: `128k` is 128,000, `64Ki` 65,536. Raises ValueError for anything else."""
    if not _SIZE.fullmatch(value):
        return int(value)
    number = value.rstrip("kKMGTi")
    powers = ("", "k", "M", "G", "T") if not value.endswith("i") else ("", "K", "M", "G", "T")
    unit: int = (1024 if value.endswith("i") else 1000) ** powers.index(value[len(number)])
    return float(number) * unit


def _json_of(kind: type[Any]) -> Callable[[str], None]:
    def check(value: str) -> None:
        if not isinstance(json.loads(value, parse_constant=_refuse), kind):
            raise ValueError(value)

    return check


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_CHECKS: dict[Type, Callable[[str], Any]] = {
    Type.TEXT: str,
    Type.INTEGER: int,
    Type.NUMBER: float,
    Type.SIZE: size_of,
    Type.OBJECT: _json_of(dict),
    Type.ARRAY: _json_of(list),
    Type.ANY: _json_of(object),
}


def _normal(kind: Type, value: str) -> str:
    """A choice as SGLang's parser compares it: converted to the option's type."""
    try:
        return str(int(value)) if kind is Type.INTEGER else value
    except ValueError:
        return value
