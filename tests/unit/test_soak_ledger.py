"""The soak's three counts of the same jobs: when they agree, and when they do not."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from common.job_record import Outcome
from local_runpod import JobQueue
from scripts.soak_ledger import Ledger, compare, jobs_on, objects_in, outcomes_of, report_words


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


def test_client_s_words_are_found_in_the_log_and_on_the_page() -> None:
    assert report_words('{"message": "a job"}\n', "worker_jobs_total 1\n", ["secret"]) == 0
    assert report_words('{"message": "a secret"}\n', "", ["secret"]) == 1
    assert report_words("", 'worker_jobs_total{route="/secret"} 1\n', ["secret"]) == 1


def test_page_s_jobs_are_counted_over_their_routes() -> None:
    page = "".join(
        f'worker_jobs_total{{outcome="{outcome}",route="{route}"}} {count}\n'
        for outcome, route, count in (
            ("failed", "/a", 1),
            ("failed", "/b", 2),
            ("completed", "/a", 4),
            ("cancelled", "/a", 0),
        )
    )
    assert jobs_on(f"# TYPE worker_jobs_total counter\n{page}") == Counter(completed=4, failed=3)


def test_line_that_is_not_an_object_is_an_error() -> None:
    assert objects_in('{"a": 1}\n{}\n') == [{"a": 1}, {}]
    with pytest.raises(ValueError, match="1 lines of the log are not JSON objects"):
        objects_in('{"a": 1}\n[]\n')
    with pytest.raises(json.JSONDecodeError):
        objects_in('{"a": 1}\ntext\n')
