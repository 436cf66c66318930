"""A user's program with `serverless.start`: the handler of the kind that OWN_HANDLER names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from typing import Any

import serverless

Job = dict[str, Any]
SCHEMA = {"n": {"type": int, "required": True, "constraints": lambda n: n != 100}}
present = 0  # jobs inside `crowd`


def function(job: Job) -> Any:
    checked = serverless.validate(job["input"], SCHEMA)
    if "errors" in checked:
        return {"error": "; ".join(checked["errors"])}
    return {"twice": 2 * job["input"]["n"]}


async def coroutine(job: Job) -> Any:
    await asyncio.sleep(0)
    return 2 * job["input"]["n"]


def generator(job: Job) -> Generator[Any, None, None]:
    for n in range(job["input"]["n"]):
        yield {"n": n}


async def async_generator(job: Job) -> AsyncGenerator[Any, None]:
    for n in range(job["input"]["n"]):
        await asyncio.sleep(0.01)
        yield n


def raises(job: Job) -> Any:
    raise ValueError(job["input"]["text"])


async def crowd(job: Job) -> Any:
    global present
    present += 1
    await asyncio.sleep(0.2)
    seen, present = present, present - 1
    return seen


def no_json(job: Job) -> Any:
    return {"a", "set"}


if __name__ == "__main__":
    serverless.start(
        {
            "handler": globals()[os.environ["OWN_HANDLER"]],
            "return_aggregate_stream": os.environ.get("AGGREGATE") == "yes",
            "concurrency_modifier": lambda so_far: min(so_far + 1, 5),
        }
    )
