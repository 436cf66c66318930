"""A program of a user's own: a handler of the kind that KIND names, which does what its input says."""

from __future__ import annotations

import os

if os.environ.get("IMPORTS_RUNPOD"):  # as programs written for RunPod's SDK begin
    import runpod

import asyncio
import contextvars
import datetime
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Generator
from typing import Any, NoReturn

import serverless

Job = dict[str, Any]
SCHEMA = {
    "prompt": {"type": str, "required": True},
    "temperature": {"type": float, "required": False, "default": 1.0, "constraints": lambda t: 0 <= t <= 2},
}
jobs_seen = 0
present: set[str] = set()  # the jobs that are in `meet`
most_present = 0
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
of_this_thread = threading.local()


class OwnError(BaseException):
    """Not an Exception."""


class Large(dict[str, Any]):
    """An output whose life can be watched."""


def report(job: Job, value: Any) -> None:
    if os.environ.get("IMPORTS_RUNPOD"):
        runpod.serverless.progress_update(job, value)
    else:
        serverless.progress_update(job, value)


def answer(job: Job) -> Any:
    """What a job's input asks for: `return`, after `progress`, unless it shall `raise`."""
    global jobs_seen
    jobs_seen += 1
    asked = job["input"]
    if "log" in asked:
        for write in (serverless.log.debug, serverless.log.info, serverless.log.warn, serverless.log.error):
            write(asked["log"])
    for value in asked.get("progress", ()):
        report(job, value)
    if "raise" in asked:
        fail(asked)
    if "validate" in asked:
        checked = serverless.validate(asked["validate"], SCHEMA)
        return {"error": checked["errors"]} if "errors" in checked else checked["validated_input"]
    match asked.get("give"):
        case "seen":
            return {"seen": jobs_seen}
        case "date":
            return datetime.date(2026, 1, 2)
        case "set":
            return {1, 2}
        case "cleared":
            job.clear()
    return asked.get("return")


def fail(asked: dict[str, Any]) -> NoReturn:
    match asked["raise"]:
        case "exit":
            sys.exit(asked["code"])
        case "interrupt":
            raise KeyboardInterrupt
        case "own":
            raise OwnError(asked["text"])
        case _:
            raise ValueError(asked["text"])


def function(job: Job) -> Any:
    return answer(job)


async def coroutine(job: Job) -> Any:
    asked = job["input"]
    if asked.get("in_task"):
        return await asyncio.gather(asyncio.create_task(coroutine({**job, "input": {**asked, "in_task": False}})))
    if "block_seconds" in asked:
        time.sleep(asked["block_seconds"])  # noqa: ASYNC251 - the mistake that the worker names
    if "meet" in asked:
        return await meet(job["id"], asked["meet"])
    result = answer(job)
    if "wait_seconds" in asked:
        await asyncio.sleep(asked["wait_seconds"])
    return result


async def meet(job_id: str, others: int) -> int:
    """Wait until that many jobs have been here at once; returns the most that there were."""
    global most_present
    present.add(job_id)
    most_present = max(most_present, len(present))
    async with asyncio.timeout(60):
        while most_present < others:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    present.remove(job_id)
    return most_present


def generator(job: Job) -> Generator[Any, None, None]:
    asked = job["input"]
    if asked.get("threads"):
        yield from where_it_lives()
        return
    if "large" in asked:
        yield from alive(asked["large"])
        return
    yield from asked.get("yield", ())
    last = answer(job)
    if last is not None:
        yield last


def where_it_lives() -> Generator[Any, None, None]:
    """What a generator keeps between its steps: its thread, what belongs to that, and its context."""
    first = threading.get_ident()
    of_this_thread.value = variable.get()
    variable.set("set")
    for _ in range(2):
        yield [threading.get_ident() == first, of_this_thread.value, variable.get()]


def alive(count: int) -> Generator[Any, None, None]:
    """Yields so many outputs, and at last how many of them are still there."""
    references = []
    for n in range(count):
        large = Large(n=n)
        references.append(weakref.ref(large))
        yield large
        del large
    gc.collect()
    yield sum(reference() is not None for reference in references)


async def async_generator(job: Job) -> AsyncGenerator[Any, None]:
    for value in generator(job):
        yield value


if __name__ == "__main__":
    serverless.start(
        {
            "handler": globals()[os.environ["KIND"]],
            "return_aggregate_stream": os.environ.get("AGGREGATE") == "yes",
            "concurrency_modifier": lambda _: int(os.environ.get("CONCURRENCY", "1")),
            "refresh_worker": os.environ.get("REFRESH") == "yes",
        }
    )
