"""When outputs are held back: not while the event loop has time to spare, and just enough while it has not."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.settings import ConfigurationError
from gateway.pacing import FixedPacer, LoadPacer, pacer_of
from gateway.settings import GatewaySettings

MEASUREMENTS_A_SECOND = round(1 / LoadPacer.MEASURE_SECONDS)


def after(interval: float, share: float, measurements: int) -> float:
    for _ in range(measurements):
        interval = LoadPacer.next_interval(interval, share)
    return interval


def test_fixed_ceiling_leaves_one_stream_alone_and_grows_with_their_number() -> None:
    pacer = FixedPacer(0.1)
    with pacer.stream():
        assert pacer.interval_seconds() == pytest.approx(0.001)
        with pacer.stream():
            assert pacer.interval_seconds() == pytest.approx(0.002)
    assert pacer.interval_seconds() == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_loop_that_is_idle_half_of_the_time_holds_nothing_back(share: float) -> None:
    assert after(0.0, share, 100) == 0.0


def test_busy_loop_holds_more_and_more_back_up_to_a_limit() -> None:
    intervals = [after(0.0, 1.0, number) for number in range(1, 60)]
    assert intervals[0] > 0
    assert intervals == sorted(intervals)
    assert intervals[-1] == intervals[-2] == LoadPacer.MOST_SECONDS


def test_longest_hold_is_over_within_a_second_of_an_idle_loop() -> None:
    share, interval = 1.0, LoadPacer.MOST_SECONDS
    for _ in range(MEASUREMENTS_A_SECOND):
        share *= 1 - LoadPacer.MEASURE_SECONDS / LoadPacer.AVERAGE_SECONDS  # no more than the average does
        interval = LoadPacer.next_interval(interval, share)
    assert interval == 0.0


def test_hold_stays_where_the_wanted_share_is_reached() -> None:
    assert after(0.1, LoadPacer.WANTED, 1000) == pytest.approx(0.1)


@pytest.mark.anyio
async def test_load_is_measured_while_there_are_streams_and_only_then() -> None:
    pacer = LoadPacer()
    with pacer.stream():
        for _ in range(3):
            time.sleep(0.3)  # noqa: ASYNC251 - the loop lags
            await asyncio.sleep(0.001)
        assert pacer.interval_seconds() > 0
    with pacer.stream():  # at once: what the streams before it did still counts
        pass
    async with asyncio.timeout(5):
        while pacer.interval_seconds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "seconds"), [("", None), ("auto", None), ("AUTO", None), ("0", 0.0), ("100", 0.1), ("2.5", 0.0025)]
)
def test_stream_flush_ms_is_auto_unless_it_is_a_number(text: str, seconds: float | None) -> None:
    assert GatewaySettings.from_environ({"STREAM_FLUSH_MS": text}).stream_flush_seconds == seconds
    assert isinstance(pacer_of(seconds), LoadPacer if seconds is None else FixedPacer)


@pytest.mark.parametrize("text", ["fast", "-1", "10001", "automatic"])
def test_other_values_of_stream_flush_ms_are_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected auto, or a number of milliseconds from 0 to 10000"):
        GatewaySettings.from_environ({"STREAM_FLUSH_MS": text})
