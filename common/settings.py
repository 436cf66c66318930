"""How environment variables are read: each has a name, a default, what it accepts, and a parser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# How a variable says yes and no.
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

Parser = tuple[str, Callable[[str], Any]]
"""What a variable accepts, in words that complete "expected …", and the function from its text to its value."""


class ConfigurationError(Exception):
    """The environment holds values that the worker cannot use; `problems` has one sentence for each.

    check: one word for what was found wanting, for the platform. is_lasting: whether every other host would refuse too.
    """

    def __init__(self, problems: list[str], *, check: str = "settings", is_lasting: bool = True) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.check = check
        self.is_lasting = is_lasting


@dataclass(frozen=True)
class Variable:
    """One variable: its default as text, what is accepted, and what it means."""

    name: str
    default: str
    expected: str
    meaning: str
    parse: Callable[[str], Any]
    """From text to value. Raises ValueError for what is not accepted."""


def variable(name: str, default: int | str, accepted: Parser, meaning: str) -> Variable:
    """A variable whose value is parsed by `accepted`."""
    expected, parse = accepted
    return Variable(name, str(default), expected, meaning, parse)


def read(variables: Iterable[Variable], environ: Mapping[str, str]) -> dict[str, Any]:
    """The value of each variable, by name; if it is absent or empty, its default; None if that is empty too.

    Raises ConfigurationError with every problem at once.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for known in variables:
        text = environ.get(known.name, "").strip() or known.default
        try:
            values[known.name] = known.parse(text) if text else None
        except ValueError:
            problems.append(f"{known.name}={text!r}: expected {known.expected}")
    if problems:
        raise ConfigurationError(problems)
    return values


def readable(variables: Iterable[Variable], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without those of the variables that have a wrong value: what remains can be read."""
    return {name: value for name, value in environ.items() if name not in set(_unreadable(variables, environ))}


def _unreadable(variables: Iterable[Variable], environ: Mapping[str, str]) -> Iterator[str]:
    for known in variables:
        try:
            read([known], environ)
        except ConfigurationError:
            yield known.name


def count(least: int = 1, most: float = math.inf) -> Parser:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not least <= (value := int(text)) <= most:
            raise ValueError(text)
        return value

    span = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    return f"a whole number {span}", parse


@dataclass(frozen=True)
class Concurrency:
    """How many jobs at once: `most`, which is a ceiling (None: without one) if the engine is asked for the number."""

    is_auto: bool
    most: int | None = None


def concurrency() -> Parser:
    """A whole number above zero, `auto`, or `auto:` and such a number; its value is a `Concurrency`."""
    expected, parse_count = count()

    def parse(text: str) -> Concurrency:
        word, colon, most = text.lower().partition(":")
        if word.strip() != "auto":
            return Concurrency(is_auto=False, most=parse_count(text))
        return Concurrency(is_auto=True, most=parse_count(most) if colon else None)

    return f"{expected}, auto, or auto with a ceiling such as auto:64", parse


def seconds() -> Parser:
    """A time in seconds, above zero."""

    def parse(text: str) -> float:
        if not 0 < (value := float(text)) < math.inf:
            raise ValueError(text)
        return value

    return "a number of seconds above 0", parse


def seconds_or_none() -> Parser:
    """A time in seconds, or zero for none."""

    def parse(text: str) -> float:
        if not 0 <= (value := float(text)) < math.inf:
            raise ValueError(text)
        return value

    return "a number of seconds of at least 0", parse


def milliseconds(most: int) -> Parser:
    """A time in milliseconds, which may be zero; its value is in seconds."""

    def parse(text: str) -> float:
        if not 0 <= (value := float(text)) <= most:
            raise ValueError(text)
        return value / 1000

    return f"a number of milliseconds from 0 to {most}", parse


def switch() -> Parser:
    """On or off."""

    def parse(text: str) -> bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError(text)
        return text.lower() in TRUE

    return "true or false", parse


def auto_or(accepted: Parser) -> Parser:
    """What another parser accepts, or `auto`, whose value is None."""
    expected, parse = accepted
    return f"auto, or {expected}", lambda text: None if text.lower() == "auto" else parse(text)


def word(words: tuple[str, ...]) -> Parser:
    """One of a few words, in upper or lower case; its value is in capitals."""

    def parse(text: str) -> str:
        if text.upper() not in words:
            raise ValueError(text)
        return text.upper()

    return f"one of {', '.join(words)}", parse


def any_text() -> Parser:
    """Any text."""
    return "text", str
