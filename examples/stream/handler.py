"""A worker that streams: an asynchronous generator, which handles several jobs at once and reports its progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import serverless

SCHEMA = {
    "text": {"type": str, "required": True, "constraints": lambda text: len(text) <= 10_000},
    "delay_seconds": {"type": float, "required": False, "default": 0.1, "constraints": lambda delay: 0 <= delay <= 1},
}
JOBS_AT_ONCE = 20


async def handler(job: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """Yield the text's words one after the other, in capitals, as a model would yield tokens."""
    checked = serverless.validate(job["input"], SCHEMA)
    if "errors" in checked:
        yield {"error": " ".join(checked["errors"])}
        return
    asked = checked["validated_input"]
    words = asked["text"].split()
    for done, word in enumerate(words):
        if done == len(words) // 2:
            serverless.progress_update(job, {"done": done, "of": len(words)})
        await asyncio.sleep(asked["delay_seconds"])
        yield word.upper()
    serverless.log.info(f"{len(words)} words", job_id=job["id"])


if __name__ == "__main__":
    serverless.start(
        {
            "handler": handler,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda jobs_so_far: JOBS_AT_ONCE,
        }
    )
