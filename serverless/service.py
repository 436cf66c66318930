"""What answers jobs, as the modes see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from common.errors import JobError, json_text

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


class Reading(NamedTuple):
    """What a handler's output says. There is one for each output, and a tuple is made faster than a dataclass.

    output: what is posted. error: why the job failed, if it did. asks_refresh: whether the worker shall end after this
    job, so that a fresh one takes its place. is_empty: whether nothing is left to post.
    """

    output: Any
    error: str | None = None
    asks_refresh: bool = False
    is_empty: bool = False


def read_error(output: Any) -> Reading:
    """Reads `{"error": text}` as a failure, and anything else as an output."""
    if isinstance(output, dict) and output.get("error"):
        return Reading(output, error=str(output["error"]))
    return Reading(output)


def read_keys(output: Any) -> Reading:
    """Reads the keys that both SDKs take out of an output: `error`, which is one unless it is empty, `refresh_worker`.

    An output that has nothing else is none at all, as there.
    """
    if not isinstance(output, dict) or not output.keys() & {"error", "refresh_worker"}:
        return Reading(output)
    rest = {key: value for key, value in output.items() if key not in ("error", "refresh_worker")}
    error = output.get("error")
    return Reading(
        rest,
        error=_as_text(error) if error else None,
        asks_refresh=bool(output.get("refresh_worker")),
        is_empty=not rest,
    )


def _as_text(error: Any) -> str:
    """An error as the text that platforms take: a list, such as that of `validate`, or an object as JSON."""
    if isinstance(error, list | dict):
        with suppress(TypeError, ValueError, RecursionError):
            return json_text(error)
    return str(error)


@dataclass(frozen=True)
class Service:
    """What answers jobs while a lifespan lasts.

    handler: answers each job.
    wait_until_ready: returns while jobs should be taken; raises JobError when they never will be again.
    is_ready: whether `wait_until_ready` would return at once.
    wait_for_failure: returns the reason once the service breaks for good.
    error_event: turns an error into the last event of a job's broken-off stream; None if outputs are not events.
    is_whole_answer: whether an output is its job's entire answer, which the result will have too.
    ends_answer: whether an output is the last part of its job's answer.
    takes_large_json: whether the handler takes a large input as LargeJson; else it gets every input parsed.
    capacity: how many jobs at once it can take; None if it does not know. A number or a concurrency modifier given to
      `run` goes before it.
    start_seconds: how long each phase of its start took, where it knows.
    read: what an output says. refreshes: whether the worker shall end after every job, as after an output that asks it.
    """

    handler: JobHandler
    wait_until_ready: Callable[[], Coroutine[Any, Any, None]]
    wait_for_failure: Callable[[], Coroutine[Any, Any, str]]
    error_event: Callable[[Job, JobError], str] | None = None
    is_whole_answer: Callable[[Any], bool] = lambda _: False
    ends_answer: Callable[[Any], bool] = lambda _: False
    takes_large_json: bool = False
    is_ready: Callable[[], bool] = lambda: True
    capacity: Capacity | None = None
    start_seconds: Mapping[str, float] = field(default_factory=dict)
    read: Callable[[Any], Reading] = read_error
    refreshes: bool = False


Lifespan = Callable[[], AbstractAsyncContextManager[Service]]
"""Starts what answers jobs, and ends it. Raises StartError if it does not start."""
