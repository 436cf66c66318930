"""Handlers of every kind give the same outputs; synchronous ones hold nothing up."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import Any

import pytest

from serverless.adapters import as_job_handler, is_generator
from serverless.service import Job

pytestmark = pytest.mark.anyio


def function(job: Job) -> Any:
    return job["input"] + 1


async def coroutine(job: Job) -> Any:
    await asyncio.sleep(0)
    return job["input"] + 1


def generator(job: Job) -> Generator[Any, None, None]:
    yield from (job["input"], job["input"] + 1)


async def async_generator(job: Job) -> AsyncGenerator[Any, None]:
    yield job["input"]
    yield job["input"] + 1


class Callable_:
    def __call__(self, job: Job) -> Any:
        return job["input"] + 1


def with_more(more: int, job: Job) -> Generator[Any, None, None]:
    yield job["input"] + more


@pytest.mark.parametrize(
    ("handler", "outputs", "streams"),
    [
        (function, [6], False),
        (coroutine, [6], False),
        (generator, [5, 6], True),
        (async_generator, [5, 6], True),
        (Callable_(), [6], False),
        (functools.partial(with_more, 2), [7], True),
        (lambda job: coroutine(job), [6], False),
        (lambda job: generator(job), [[5, 6]], False),
        (lambda job: async_generator(job), [[5, 6]], False),
        (lambda job: ({"error": n} for n in (0, job["input"], 7)), [{"error": 5}], False),
    ],
)
async def test_every_kind_of_handler(handler: Callable[[Job], Any], outputs: list[Any], streams: bool) -> None:
    assert [output async for output in as_job_handler(handler)({"id": "a", "input": 5})] == outputs
    assert is_generator(handler) is streams


def collecting(outputs: Callable[[Job], Any], collect: Callable[[Any], Any]) -> Callable[[Job], Any]:
    """As a decorator would that gathers what a generator yields."""

    @functools.wraps(outputs)
    def gathered(job: Job) -> Any:
        return collect(outputs(job))

    return gathered


async def listed(outputs: AsyncGenerator[Any, None]) -> list[Any]:
    return [output async for output in outputs]


@pytest.mark.parametrize(
    ("handler", "outputs"),
    [
        (collecting(generator, list), [5, 6]),
        (collecting(generator, tuple), [5, 6]),
        (collecting(generator, sum), [11]),
        (collecting(generator, lambda outputs: dict.fromkeys(outputs)), [{5: None, 6: None}]),
        (collecting(generator, lambda outputs: outputs), [5, 6]),
        (collecting(generator, lambda outputs: map(str, outputs)), ["5", "6"]),
        (collecting(async_generator, lambda outputs: outputs), [5, 6]),
        (collecting(async_generator, listed), [5, 6]),
    ],
)
async def test_decorator_may_gather_what_a_generator_yields(handler: Callable[[Job], Any], outputs: list[Any]) -> None:
    assert [output async for output in as_job_handler(handler)({"id": "a", "input": 5})] == outputs
    assert is_generator(handler)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ValueError("no"), ValueError), (StopIteration(), RuntimeError)],  # no coroutine can raise StopIteration
)
async def test_error_of_a_synchronous_handler_is_raised(error: Exception, raised: type[Exception]) -> None:
    def raises(job: Job) -> None:
        raise error

    with pytest.raises(raised):
        await anext(as_job_handler(raises)({"id": "a"}))


async def test_synchronous_handlers_run_side_by_side() -> None:
    together = threading.Barrier(5)

    def meet(job: Job) -> int:
        return together.wait(5)

    results = await asyncio.gather(*(anext(as_job_handler(meet)({"id": "a"})) for _ in range(5)))
    assert sorted(results) == [0, 1, 2, 3, 4]


async def test_generator_that_is_left_is_closed_at_its_next_step() -> None:
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def slow(job: Job) -> Generator[int, None, None]:
        try:
            yield 1
            inside.set()
            go_on.wait(10)
            yield 2
        finally:
            closed.set()

    async def consume() -> None:
        async with aclosing(as_job_handler(slow)({"id": "a"})) as outputs:
            async for _ in outputs:
                pass

    consuming = asyncio.create_task(consume())
    await asyncio.to_thread(inside.wait, 10)
    consuming.cancel()  # while the generator is inside its step
    with pytest.raises(asyncio.CancelledError):
        await consuming
    assert not closed.is_set()
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 10)
