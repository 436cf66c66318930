"""A program of a user's own: a handler of the kind that KIND names, which does what its input says."""

from __future__ import annotations

import os

if os.environ.get("IMPORTS_RUNPOD"):  # as programs written for RunPod's SDK begin
    import runpod

import asyncio
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any

import serverless

Job = dict[str, Any]
jobs_seen = 0


class OwnError(BaseException):
    """Not an Exception."""


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
    match asked.get("raise"):
        case "exit":
            sys.exit(asked["code"])
        case "interrupt":
            raise KeyboardInterrupt
        case "own":
            raise OwnError(asked["text"])
        case "error":
            raise ValueError(asked["text"])
    if asked.get("seen"):
        return {"seen": jobs_seen}
    return asked.get("return")


def function(job: Job) -> Any:
    return answer(job)


async def coroutine(job: Job) -> Any:
    if job["input"].get("in_task"):
        return await asyncio.gather(
            asyncio.create_task(coroutine({**job, "input": {**job["input"], "in_task": False}}))
        )
    if "block_seconds" in job["input"]:
        time.sleep(job["input"]["block_seconds"])  # noqa: ASYNC251 - the mistake that the worker names
    result = answer(job)
    if "wait_seconds" in job["input"]:
        await asyncio.sleep(job["input"]["wait_seconds"])
    return result


def generator(job: Job) -> Generator[Any, None, None]:
    threads = []
    for value in job["input"].get("yield", ()):
        threads.append(threading.get_ident())
        yield value
    last = answer(job)
    if last is not None:
        yield last
    if job["input"].get("threads"):
        yield len({*threads, threading.get_ident()})


async def async_generator(job: Job) -> AsyncGenerator[Any, None]:
    for value in job["input"].get("yield", ()):
        yield value
    last = answer(job)
    if last is not None:
        yield last


if __name__ == "__main__":
    serverless.start(
        {
            "handler": globals()[os.environ["KIND"]],
            "return_aggregate_stream": os.environ.get("AGGREGATE") == "yes",
            "concurrency_modifier": lambda _: int(os.environ.get("CONCURRENCY", "1")),
            "refresh_worker": os.environ.get("REFRESH") == "yes",
        }
    )
