"""The soak's three counts of the same jobs: when they agree, and when they do not."""

from __future__ import annotations

from collections import Counter

import pytest

from common.job_record import Outcome
from local_runpod import JobQueue
from scripts.soak_ledger import Ledger, compare, outcomes_of


@pytest.fixture
def ledger() -> Ledger:
    """Of five jobs one is never taken, two are answered, one fails, one is cancelled while its result is on its way."""
    queue = JobQueue()
    ledger = Ledger(queue)
    jobs = [queue.submit({"n": number}) for number in range(5)]
    queue.take("w", 4)
    for job, error in zip(jobs[:3], (None, None, "no"), strict=True):
        queue.finish(job, output=1, error=error)
    queue.cancel(jobs[3])
    queue.finish(jobs[3], output=1, error=None)
    ledger.names = [job.id for job in jobs]  # type: ignore[attr-defined]
    return ledger


def logged(ledger: Ledger, *outcomes: str) -> dict[str, list[str]]:
    names: list[str] = ledger.names  # type: ignore[attr-defined]
    lines = [{"requestId": name, "outcome": end} for name, end in zip(names, outcomes, strict=False)]
    return outcomes_of([{"message": "no job"}, *lines])


@pytest.mark.parametrize("last", [Outcome.CANCELLED, Outcome.COMPLETED])
def test_counts_agree_whichever_way_a_race_went(ledger: Ledger, last: Outcome) -> None:
    log = logged(ledger, "completed", "completed", "failed", last)
    assert compare(ledger, log, Counter(end for ends in log.values() for end in ends)) == 0


def test_result_that_nobody_took_is_no_disagreement() -> None:
    queue = JobQueue()
    ledger = Ledger(queue)
    job = queue.submit({})
    queue.take("w", 1)
    queue.cancel(job)
    queue.forget(job)
    for end in ("cancelled", "undelivered"):
        assert compare(ledger, {job.id: [end]}, Counter({end: 1})) == 0
    assert compare(ledger, {job.id: ["completed"]}, Counter(completed=1)) == 1


WRONG = {
    "a job without a line": ["completed", "completed", "failed"],
    "another outcome": ["completed", "failed", "failed", "cancelled"],
    "a job that was never taken": ["completed", "completed", "failed", "cancelled", "completed"],
}


@pytest.mark.parametrize("case", WRONG)
def test_log_that_differs_from_the_platform_is_a_disagreement(ledger: Ledger, case: str) -> None:
    log = logged(ledger, *WRONG[case])
    assert compare(ledger, log, Counter(end for ends in log.values() for end in ends)) == 1


def test_page_or_second_line_that_differs_is_a_disagreement(ledger: Ledger) -> None:
    log = logged(ledger, "completed", "completed", "failed", "cancelled")
    right = Counter(end for ends in log.values() for end in ends)
    assert compare(ledger, log, right + Counter(completed=1)) == 1
    log[next(iter(log))].append("completed")
    assert compare(ledger, log, right) == 1
