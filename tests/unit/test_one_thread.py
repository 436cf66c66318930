"""A synchronous generator lives in one thread and one context, from its first step to its clean-up."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import aclosing
from typing import Any

import pytest

from serverless.adapters import as_job_handler
from serverless.service import Job

pytestmark = pytest.mark.anyio

JOB: Job = {"id": "a", "input": 3}
var = contextvars.ContextVar("var", default="unset")


async def outputs_of(handler: Callable[[Job], Any]) -> list[Any]:
    async with aclosing(as_job_handler(handler)(JOB)) as outputs:
        return [output async for output in outputs]


async def test_every_step_and_the_clean_up_are_in_the_same_thread() -> None:
    threads: list[int] = []

    def steps(job: Job) -> Generator[int, None, None]:
        try:
            for _ in range(job["input"]):
                threads.append(threading.get_ident())
                yield 1
        finally:
            threads.append(threading.get_ident())

    assert await outputs_of(steps) == [1, 1, 1]
    assert len(threads) == 4
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1


async def test_thread_locals_and_sqlite_are_at_hand_at_each_step() -> None:
    local = threading.local()

    def steps(job: Job) -> Generator[Any, None, None]:
        local.count = 0
        database = sqlite3.connect(":memory:")  # refuses calls from any other thread
        database.execute("create table numbers (n)")
        for _ in range(job["input"]):
            local.count += 1
            database.execute("insert into numbers values (?)", (local.count,))
            yield database.execute("select sum(n) from numbers").fetchone()[0]
        database.close()

    assert await outputs_of(steps) == [1, 3, 6]


async def test_context_variables_come_from_the_job_and_stay_between_steps() -> None:
    var.set("of the job")

    def steps(job: Job) -> Generator[str, None, None]:
        yield var.get()
        var.set("of the generator")
        yield var.get()
        yield var.get()

    assert await outputs_of(steps) == ["of the job", "of the generator", "of the generator"]
    assert var.get() == "of the job"


async def test_generator_that_is_left_is_cleaned_up_in_its_own_thread() -> None:
    threads: list[int] = []
    cleaned = threading.Event()

    def steps(job: Job) -> Generator[int, None, None]:
        try:
            while True:
                threads.append(threading.get_ident())
                yield 1
        finally:
            threads.append(threading.get_ident())
            cleaned.set()

    async with aclosing(as_job_handler(steps)(JOB)) as outputs:
        await anext(outputs)
    assert await asyncio.to_thread(cleaned.wait, 10)
    assert len(threads) == 2
    assert len(set(threads)) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("no"), ValueError),
        (SystemExit(3), SystemExit),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (GeneratorExit(), RuntimeError),
    ],
)
async def test_whatever_a_step_raises_reaches_the_job(error: BaseException, raised: type[BaseException]) -> None:
    def steps(job: Job) -> Generator[int, None, None]:
        yield 1
        raise error

    outputs = as_job_handler(steps)(JOB)
    assert await anext(outputs) == 1
    with pytest.raises(raised):
        await anext(outputs)


async def test_clean_up_that_raises_is_logged_and_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    raised = threading.Event()

    def steps(job: Job) -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raised.set()
            raise ValueError(f"input {job['input']}")

    async with aclosing(as_job_handler(steps)(JOB)) as outputs:
        await anext(outputs)
    await asyncio.to_thread(raised.wait, 10)
    while "when it was closed" not in caplog.text:
        await asyncio.sleep(0.005)
    assert "a generator raised ValueError when it was closed" in caplog.text
    assert "input 3" not in caplog.text


async def test_a_step_is_made_only_when_it_is_asked_for() -> None:
    made: list[int] = []

    def steps(job: Job) -> Generator[int, None, None]:
        for n in range(job["input"]):
            made.append(n)
            yield n

    async with aclosing(as_job_handler(steps)(JOB)) as outputs:
        await anext(outputs)
        await asyncio.sleep(0.05)
        assert made == [0]
