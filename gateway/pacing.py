"""How far apart the outputs of streams are, so that a busy worker sends few large ones instead of many small ones.

An output costs as much as reading twenty events. While the event loop has time to spare, no output waits for anything;
when it has not, holding outputs back is what makes time, and every event comes earlier for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Pacer(Protocol):
    """Says how far apart the outputs of a stream are to be."""

    def stream(self) -> AbstractContextManager[None]:
        """Count a stream for the length of this context."""

    def interval_seconds(self) -> float:
        """The least time between the starts of two outputs of one stream, at present."""


class FixedPacer:
    """STREAM_FLUSH_MS as a number: a ceiling on the outputs of all streams together.

    Each stream's outputs begin at least `flush_seconds * streams / 100` apart. So all streams together send at most
    100 / flush_seconds outputs a second, however many there are; a single stream, or a few, never notice.
    """

    STREAMS = 100

    def __init__(self, flush_seconds: float) -> None:
        self._flush_seconds = flush_seconds
        self._streams = 0

    @contextmanager
    def stream(self) -> Generator[None, None, None]:
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def interval_seconds(self) -> float:
        return self._flush_seconds * self._streams / self.STREAMS


class LoadPacer:
    """STREAM_FLUSH_MS=auto: outputs are held back only while the event loop is really busy, and then just enough.

    How busy it is: the share of time for which its thread works, or for which a timer is late, whichever is more (where
    other processes take the processor, the loop lags without working much). The interval grows and shrinks by a factor
    each time that is measured, so that it goes from its longest to nothing within a second.
    """

    # It is measured this often while there are streams; a load of streams that tick every 100 ms is seen whole within
    # a few measurements, over which it is averaged.
    MEASURE_SECONDS = 0.05
    AVERAGE_SECONDS = 0.25
    # Above the first share, holding begins; the interval is then kept where the second share is reached.
    BUSY, WANTED = 0.7, 0.6
    # ln of the factor for one measurement, for each unit that the share is away from what is wanted.
    GAIN = 0.8
    FIRST_SECONDS, LEAST_SECONDS, MOST_SECONDS = 0.02, 0.01, 0.4

    def __init__(self) -> None:
        self._streams = 0
        self._interval = 0.0
        self._share = 0.0
        self._measuring: asyncio.TimerHandle | None = None

    @contextmanager
    def stream(self) -> Generator[None, None, None]:
        self._streams += 1
        if self._measuring is None:
            self._begin()
        try:
            yield
        finally:
            self._streams -= 1

    def interval_seconds(self) -> float:
        return self._interval

    def _begin(self) -> None:
        self._share = self._interval = 0.0
        self._note()

    def _note(self) -> None:
        loop = asyncio.get_running_loop()
        self._measured_at, self._worked = loop.time(), time.thread_time()
        self._measuring = loop.call_later(self.MEASURE_SECONDS, self._measure)

    def _measure(self) -> None:
        self._measuring = None
        if not self._streams:
            self._interval = 0.0
            return  # the next stream begins anew
        seconds = asyncio.get_running_loop().time() - self._measured_at
        working = (time.thread_time() - self._worked) / seconds
        lagging = 1 - self.MEASURE_SECONDS / seconds
        weight = 1 - math.exp(-seconds / self.AVERAGE_SECONDS)
        self._share += weight * (max(working, lagging) - self._share)
        self._interval = self.next_interval(self._interval, self._share)
        self._note()

    @classmethod
    def next_interval(cls, interval: float, share: float) -> float:
        """The interval (seconds) after one more measurement that finds the loop busy for this share of time."""
        if not interval:
            return cls.FIRST_SECONDS if share > cls.BUSY else 0.0
        interval *= math.exp(cls.GAIN * (share - cls.WANTED))
        return 0.0 if interval < cls.LEAST_SECONDS else min(interval, cls.MOST_SECONDS)


def pacer_of(flush_seconds: float | None) -> Pacer:
    """The pacer for a value of STREAM_FLUSH_MS, in seconds; None for `auto`."""
    return LoadPacer() if flush_seconds is None else FixedPacer(flush_seconds)
