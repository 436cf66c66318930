"""When jobs come, and how long their answers are."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HINT = (
    "expected burst:JOBS, steady:JOBS_A_SECOND:SECONDS, days:JOBS_A_SECOND_AT_NOON:DAYS, or a CSV file with the "
    "columns `seconds` and, if you like, `tokens`"
)
DAY_SECONDS = 24 * 3600.0
NIGHT = 0.1
MOST_JOBS = 10_000_000  # about 2 GB of memory in a simulation


class TrafficError(Exception):
    """The description of the traffic is not understood; the text says what is accepted."""


@dataclass(frozen=True)
class Arrival:
    """One job: when it comes, in seconds from the beginning, and how many tokens its answer has."""

    at: float
    tokens: int


def read_traffic(text: str, *, tokens: int, seed: int = 0) -> list[Arrival]:
    """The jobs that `burst:96`, `steady:2:60`, `days:2:3` or the name of a CSV file stands for, in order.

    `burst:96` is 96 jobs at once; `steady:2:60` two a second on average, at random times, for a minute; `days:2:3`
    three days that begin at midnight, with two a second at noon and a tenth of that at night. tokens: the length of
    answers that have none of their own. Raises TrafficError.
    """
    kind, *numbers = text.split(":")
    chance = random.Random(seed + 1)
    try:
        match kind, numbers:
            case "burst", [jobs]:
                _check_number(text, int(jobs))
                arrivals = [Arrival(0.0, tokens) for _ in range(int(jobs))]
            case "steady", [rate, seconds]:
                _check_number(text, float(rate) * float(seconds))
                arrivals = list(_steady(float(rate), float(seconds), tokens, random.Random(seed)))
            case "days", [rate, days]:
                _check_number(text, float(rate) * float(days) * DAY_SECONDS)
                every = _steady(float(rate), float(days) * DAY_SECONDS, tokens, random.Random(seed))
                arrivals = [arrival for arrival in every if chance.random() < _share_of_noon(arrival.at)]
            case _:
                arrivals = _trace(Path(text), tokens)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise TrafficError(f"{text}: {HINT}") from None
    if not arrivals:
        raise TrafficError(f"{text}: there are no jobs in it")
    return arrivals


def _check_number(text: str, jobs: float) -> None:
    if MOST_JOBS < jobs < math.inf:
        raise TrafficError(f"{text}: these are more than {MOST_JOBS:,} jobs")


def _steady(rate: float, seconds: float, tokens: int, chance: random.Random) -> Iterator[Arrival]:
    """A Poisson process: independent users."""
    if not (rate > 0 and 0 < seconds < float("inf")):
        raise ValueError
    at = chance.expovariate(rate)
    while at < seconds:
        yield Arrival(at, tokens)
        at += chance.expovariate(rate)


def _share_of_noon(at: float) -> float:
    return NIGHT + (1 - NIGHT) * (1 - math.cos(2 * math.pi * at / DAY_SECONDS)) / 2


def _trace(path: Path, tokens: int) -> list[Arrival]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise TrafficError(f"{path}: it cannot be read ({type(error).__name__}); {HINT}") from None
    arrivals = []
    for number, row in enumerate(rows, start=2):
        try:
            arrival = Arrival(float(row["seconds"]), int(row.get("tokens") or tokens))
        except (KeyError, TypeError, ValueError):
            raise TrafficError(f"{path}, line {number}: {HINT}") from None
        if not 0 <= arrival.at < float("inf") or arrival.tokens < 1:
            raise TrafficError(f"{path}, line {number}: seconds count from 0, tokens from 1")
        arrivals.append(arrival)
    return sorted(arrivals, key=lambda arrival: arrival.at)
