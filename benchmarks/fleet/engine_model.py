"""How fast an engine is, over the number of streams at once: what `scripts/bench --url URL --json FILE` measured."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class EngineModelError(Exception):
    """The file is not one that `scripts/bench --url … --json` has written; the text says what is wrong with it."""


@dataclass(frozen=True)
class EngineModel:
    """Points measured: streams at once, seconds to the first token, tokens a second of each stream.

    In between, both are taken to change evenly; beyond the last point, the tokens a second of all streams together are
    taken to grow no more, and the first token to come as late as there.
    """

    streams: tuple[int, ...]
    firsts: tuple[float, ...]
    rates: tuple[float, ...]

    @classmethod
    def steady(cls, rate: float, *, first: float = 0.0) -> EngineModel:
        """An engine whose streams are equally fast however many they are: the paced one."""
        return cls((1, 100_000), (first, first), (rate, rate))

    @classmethod
    def read(cls, path: Path) -> EngineModel:
        """From the file. Raises EngineModelError."""
        try:
            loads: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["loads"]
            points = sorted(
                (int(load["streams"]), float(load["first_median"]), float(load["tokens_a_second_a_stream"]))
                for load in loads
            )
        except OSError as error:
            raise EngineModelError(f"{path}: it cannot be read ({type(error).__name__})") from None
        except (ValueError, LookupError, TypeError):
            raise EngineModelError(f"{path}: expected what `scripts/bench --url URL --json FILE` writes") from None
        if not points or any(rate <= 0 or first < 0 or streams < 1 for streams, first, rate in points):
            raise EngineModelError(f"{path}: its loads have no streams, or no speed")
        streams, firsts, rates = zip(*points, strict=True)
        return cls(streams, firsts, rates)

    def first(self, streams: int) -> float:
        """Seconds to the first token, with so many streams at once."""
        return self._at(streams, self.firsts)

    def rate(self, streams: int) -> float:
        """Tokens a second of each of so many streams."""
        most = self.streams[-1]
        return self.rates[-1] * most / streams if streams > most else self._at(streams, self.rates)

    def _at(self, streams: int, values: tuple[float, ...]) -> float:
        index = bisect_left(self.streams, streams)
        if index == 0:
            return values[0]
        if index == len(self.streams):
            return values[-1]
        left, right = self.streams[index - 1], self.streams[index]
        share = (streams - left) / (right - left)
        return values[index - 1] * (1 - share) + values[index] * share
