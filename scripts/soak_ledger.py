"""What became of each job of a soak, from three sides: the platform's, the worker's log, and its metrics page."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from common.job_record import Outcome
from local_runpod import Job, JobQueue

READ_SECONDS = 60.0
READER_SECONDS = 30.0  # for the last lines, once the worker has ended


class Ledger:
    """The jobs that a queue has handed out, and what the worker has reported of each."""

    def __init__(self, queue: JobQueue) -> None:
        self.taken: set[str] = set()
        self.reported: dict[str, Outcome] = {}
        take, finish = queue.take, queue.finish

        def noted_take(worker_id: str, most: int) -> list[Job]:
            jobs = take(worker_id, most)
            self.taken.update(job.id for job in jobs)
            return jobs

        def noted_finish(job: Job, *, output: Any, error: str | None, size_bytes: int = 0) -> None:
            finish(job, output=output, error=error, size_bytes=size_bytes)
            self.reported[job.id] = Outcome.COMPLETED if error is None else Outcome.FAILED

        queue.take, queue.finish = noted_take, noted_finish  # type: ignore[method-assign]

    def outcomes(self, logged: dict[str, list[str]]) -> Counter[str]:
        """How many jobs ended how.

        Of a job that its client cancelled while its result was on its way, the two sides may each know something else:
        the worker that it was cancelled and the platform its result, or, if the client had forgotten it by then, the
        worker that nobody took its result. There the log decides.
        """
        ends: Counter[str] = Counter()
        for job_id in self.taken:
            reported, said = self.reported.get(job_id), logged.get(job_id)
            possible = [reported, Outcome.CANCELLED] if reported else [Outcome.CANCELLED, Outcome.UNDELIVERED]
            ends[next((end for end in possible if said == [end]), possible[0] or "")] += 1
        return ends


class RareReader:
    """Reads the worker's log once a minute: in between, it waits in the worker."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe()
        self._data: list[bytes] = []
        self._hurried = threading.Event()
        os.set_blocking(self._read_end, False)
        self._thread = threading.Thread(target=self._read, name="soak log", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Read everything from now on, to the end."""
        self._hurried.set()

    async def log(self) -> str:
        """All of the log, once every writer has closed it."""
        os.close(self.write_end)
        self.hurry()
        await asyncio.to_thread(self._thread.join, READER_SECONDS)
        return b"".join(self._data).decode()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._read_end, 65536)
            except BlockingIOError:
                if self._hurried.wait(READ_SECONDS):
                    os.set_blocking(self._read_end, True)
                continue
            if not data:
                os.close(self._read_end)
                return
            self._data.append(data)


async def metrics_page(port: int) -> str:
    """The worker's metrics."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return (await client.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status().text


def objects_in(log: str) -> list[dict[str, Any]]:
    """The log's lines. Raises ValueError for one that is not a JSON object."""
    objects = [json.loads(line) for line in log.split("\n") if line]
    if others := sum(not isinstance(value, dict) for value in objects):
        raise ValueError(f"{others} lines of the log are not JSON objects")
    return objects


def jobs_on(page: str) -> Counter[str]:
    """How many jobs ended how, by the worker's metrics."""
    ends: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "worker_jobs_total":
                ends[sample.labels["outcome"]] += int(sample.value)
    return ends


def outcomes_of(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The outcomes that the log has for each job: one, if all is well."""
    outcomes: dict[str, list[str]] = {}
    for line in lines:
        if "outcome" in line:
            outcomes.setdefault(line["requestId"], []).append(line["outcome"])
    return outcomes


def report_words(log: str, page: str, words: Iterable[str]) -> int:
    """Print how many lines log and page have, and how many have one of these words. Returns 1 if any has."""
    lines = [line for line in f"{log}\n{page}".split("\n") if line]
    telling = sum(any(word in line for word in words) for line in lines)
    print(f"{'lines of log and page':<24} {len(lines)}, {telling} of them with a client's or the model's words")
    return 1 if telling else 0


def compare(ledger: Ledger, logged: dict[str, list[str]], metrics: Counter[str]) -> int:
    """Print the three counts side by side. Returns 1 unless they agree exactly, with one line for each job."""
    platform, log = ledger.outcomes(logged), Counter(end for ends in logged.values() for end in ends)
    print(f"\n{'ended':<24} {'platform':>9} {'log':>9} {'/metrics':>9}")
    for outcome in Outcome:
        print(f"{outcome:<24} {platform[outcome]:>9} {log[outcome]:>9} {metrics[outcome]:>9}")
    agree = platform == log == metrics and ledger.taken == set(logged)
    print("the three agree" if agree else "THE THREE DISAGREE")
    return 0 if agree else 1
