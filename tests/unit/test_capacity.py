"""From SGLang's figures to a number of jobs, and when they are no longer believed."""

from __future__ import annotations

import math

import pytest

from common.settings import Concurrency
from common.variables import read_variables
from sglang_engine.capacity import DOUBT_SECONDS, SILENCE_SECONDS, Doubt, Reading
from sglang_engine.estimate import FIRST_JOB_TOKENS, Estimate, InFlight, Limit
from sglang_engine.loads import RankLoad

LARGE = 16 * 2**20
"""Tokens of a KV cache that is never what binds."""


def rank(running: int = 0, waiting: int = 0, *, slots: int = 8, tokens: float = LARGE, used: float = 0.0) -> RankLoad:
    return RankLoad(running, waiting, slots, tokens, used, None)


def read(estimate: Estimate, ranks: list[RankLoad], jobs: int, *, ended_a_second: float = 0.0) -> int:
    """The number after a reading with this many jobs in flight, none of them new."""
    estimate.read(ranks, InFlight(jobs, jobs), ended_a_second=ended_a_second)
    return estimate.jobs


def test_idle_engine_is_filled_at_once() -> None:
    estimate = Estimate()
    assert read(estimate, [rank(slots=64)], 0) == 64 + 4
    assert (estimate.limit, estimate.reserve) == (Limit.SLOTS, 4)


def test_ranks_count_together() -> None:
    assert read(Estimate(), [rank(slots=8), rank(slots=8)], 0) == 16 + 2


def test_cache_decides_where_it_is_what_binds() -> None:
    estimate = Estimate()
    assert read(estimate, [rank(slots=2048, tokens=100 * FIRST_JOB_TOKENS)], 0) == 95 + 6
    assert estimate.limit is Limit.TOKENS


def test_jobs_that_are_larger_than_thought_count_at_once_and_smaller_ones_bit_by_bit() -> None:
    estimate, tokens = Estimate(), 100 * FIRST_JOB_TOKENS
    assert read(estimate, [rank(20, slots=2048, tokens=tokens, used=0.8)], 20) == pytest.approx(0.95 * 25 + 2, abs=1)
    for used in (0.2, 0.2):
        small = read(estimate, [rank(20, slots=2048, tokens=tokens, used=used)], 20)
    assert 0.95 * 25 + 2 < small < 0.95 * 100


def test_tiny_jobs_fill_the_engine_within_a_few_readings() -> None:
    estimate, tokens, jobs = Estimate(), 40 * FIRST_JOB_TOKENS, 0
    for _ in range(4):  # the first of them while idle
        jobs = read(estimate, [rank(jobs, slots=256, tokens=tokens, used=jobs * 20 / tokens)], jobs)
    assert jobs == 256 + 16
    assert not estimate.is_growing


def test_full_queue_keeps_what_runs_and_the_reserve() -> None:
    estimate = Estimate()
    assert read(estimate, [rank(8, 2)], 10) == 10
    assert estimate.limit is Limit.WAITING
    assert read(estimate, [rank(5, 5)], 10) == 10, "of two readings the larger counts"
    assert read(estimate, [rank(5, 5)], 10) == 5 + 2


def test_job_that_ends_leaves_its_place_to_the_next_however_old_the_figures_are() -> None:
    estimate = Estimate()
    read(estimate, [rank(8, 2)], 10)
    estimate.read([rank(8, 2)], InFlight(10, 8), ended_a_second=0)  # two came after the figures had been written
    assert estimate.jobs == 10


def test_requests_in_a_prefill_are_neither_running_nor_waiting_and_still_count() -> None:
    estimate = Estimate()
    for _ in range(2):
        assert read(estimate, [rank(2, 3)], 9) == 6 + 2


def test_more_is_held_in_reserve_where_jobs_end_quickly() -> None:
    estimate = Estimate()
    assert read(estimate, [rank(64, slots=64)], 64, ended_a_second=200.0) == 64 + 30
    assert read(estimate, [rank(8, slots=8)], 8, ended_a_second=500.0) == 8 + 8, "no more than runs"


def test_job_of_several_requests_takes_several_slots() -> None:
    estimate = Estimate()
    assert read(estimate, [rank(6, slots=8)], 2) == 2 + 2  # three each
    assert read(estimate, [rank(8, 4, slots=8)], 4) == 2 + 2


def test_rank_with_room_is_filled_while_another_has_requests_waiting() -> None:
    assert read(Estimate(), [rank(8, 2), rank(3)], 13) == 16 + 2


def test_number_is_one_at_least() -> None:
    assert read(Estimate(), [rank(0, 50)], 0) == 2


READING = Reading(written_at=5.0, is_at_work=True, is_idle=False)


def test_figures_that_stand_still_while_work_is_done_are_not_believed() -> None:
    doubt = Doubt()
    for second in range(int(SILENCE_SECONDS)):
        doubt.weighs(READING, float(second))
        assert not doubt.is_certain
    doubt.weighs(READING, SILENCE_SECONDS)
    assert (doubt.is_certain, doubt.reason) == (True, "its figures have not changed for 30 s of work")


def test_figures_may_stand_still_while_no_work_is_done() -> None:
    doubt = Doubt()
    for second in range(3 * int(SILENCE_SECONDS)):
        doubt.weighs(Reading(5.0, is_at_work=False, is_idle=True), float(second))
    assert not doubt.is_certain


def test_engine_that_answers_and_says_that_nothing_runs_is_not_believed() -> None:
    doubt = Doubt()
    for second in range(int(DOUBT_SECONDS) + 1):
        assert not doubt.is_certain
        doubt.weighs(Reading(float(second), is_at_work=True, is_idle=True), float(second))
    assert (doubt.is_certain, doubt.reason) == (True, "it says that nothing runs, and yet requests are answered")


def test_one_plausible_reading_ends_the_doubt() -> None:
    doubt = Doubt()
    doubt.rises("no answer", 0.0)
    doubt.weighs(READING, SILENCE_SECONDS - 1)
    doubt.rises("no answer", SILENCE_SECONDS)
    assert not doubt.is_certain
    doubt.rises("no answer", 2 * SILENCE_SECONDS)
    assert doubt.is_certain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", Concurrency(is_auto=True)),
        ("AUTO", Concurrency(is_auto=True)),
        ("auto:64", Concurrency(is_auto=True, most=64)),
        ("64", Concurrency(is_auto=False, most=64)),
        ("", Concurrency(is_auto=True)),
    ],
)
def test_concurrency_is_a_number_or_auto_or_auto_with_a_ceiling(text: str, value: Concurrency) -> None:
    assert read_variables({"MAX_CONCURRENCY": text})["MAX_CONCURRENCY"] == value


def test_unknown_tokens_do_not_limit() -> None:
    assert read(Estimate(), [rank(slots=500, tokens=math.inf)], 0) == 500 + 32
