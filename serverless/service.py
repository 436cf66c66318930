"""What answers jobs, as the modes see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import JobError

Job = dict[str, Any]
"""A job as the platform hands it over: `{"id": text, "input": anything, …}`."""

JobHandler = Callable[[Job], AsyncGenerator[Any, None]]
"""An async generator function of a job. It yields outputs; `{"error": text}` is the last one of a failed job."""


class Capacity(Protocol):
    """How many jobs a service can take at once, where it knows."""

    @property
    def at_once(self) -> int:
        """The number to have in flight at most, at this moment."""

    async def wait_until_above(self, jobs: int) -> None:
        """Return once `at_once` is more than this."""


@dataclass(frozen=True)
class Service:
    """What answers jobs while a lifespan lasts.

    handler: answers each job.
    wait_until_ready: returns while jobs should be taken; raises JobError when they never will be again.
    wait_for_failure: returns the reason once the service breaks for good.
    error_event: turns an error into the last event of a job's broken-off stream; None if outputs are not events.
    is_whole_answer: whether an output is its job's entire answer, which the result will have too.
    takes_large_json: whether the handler takes a large input as LargeJson; else it gets every input parsed.
    capacity: how many jobs at once it can take; None if it does not know. A number or a concurrency modifier given to
      `run` goes before it.
    """

    handler: JobHandler
    wait_until_ready: Callable[[], Coroutine[Any, Any, None]]
    wait_for_failure: Callable[[], Coroutine[Any, Any, str]]
    error_event: Callable[[Job, JobError], str] | None = None
    is_whole_answer: Callable[[Any], bool] = lambda _: False
    takes_large_json: bool = False
    capacity: Capacity | None = None


Lifespan = Callable[[], AbstractAsyncContextManager[Service]]
"""Starts what answers jobs, and ends it. Raises StartError if it does not start."""


def error_of(output: Any) -> str | None:
    """The error text if an output is a handler's report of failure, else None."""
    if isinstance(output, dict) and output.get("error"):
        return str(output["error"])
    return None
