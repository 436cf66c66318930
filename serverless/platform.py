"""What a platform is to the job loop: where jobs come from and answers go, and in what form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from serverless.service import Job


class PlatformError(Exception):
    """A call to the platform failed. status: that of its answer, None if there was none.

    never: whether there is no point in trying again, because the data cannot be encoded.
    """

    def __init__(self, reason: str, status: int | None = None, *, never: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.is_unsendable = never

    @property
    def is_final(self) -> bool:
        """Whether the same call can never succeed: the platform understood and refused."""
        refused = self.status is not None and 400 <= self.status < 500 and self.status not in (408, 425, 429)
        return refused or self.is_unsendable


class Platform(Protocol):
    """Where jobs come from and answers go. All but `begun` and `ended` raise PlatformError."""

    async def take(self, most: int) -> list[Any]:
        """Wait for jobs, for one long poll at most; return up to `most` of them, or none, as the platform sent them.

        Once the platform has begun to hand over jobs, a cancellation must not lose them: they are still returned.
        """

    async def stopped_jobs(self) -> list[str] | None:
        """Wait for the ids of jobs to stop, for one long poll at most; None on a platform without a stop channel."""

    async def post_output(self, job: Job, output: Any) -> None:
        """Send one output of a job that is still running."""

    async def post_progress(self, job: Job, progress: Any) -> None:
        """Send a report of its progress while it goes on; where `Delivery.reports_progress` is false, never called."""

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        """Send the end of a job: its `output` or its `error`."""

    def begun(self, job_id: str) -> None:
        """Count a job as in progress."""

    def ended(self, job_id: str) -> None:
        """Stop counting it."""


@dataclass(frozen=True)
class Delivery:
    """The form in which a job's outputs go to the platform.

    streamed: whether each is sent as it comes. result: makes the job's result from all of them. is_whole: whether the
    result contains every output, so that nothing is lost if one could not be sent; if not, outputs that were sent are
    not kept. reports_progress: whether the platform takes reports of a job that goes on.
    """

    streamed: bool
    result: Callable[[list[Any]], Any]
    is_whole: bool = True
    reports_progress: bool = True


def the_only_one(outputs: list[Any]) -> Any:
    """The result for a handler that yields one output."""
    return outputs[0] if outputs else None


STREAMED = Delivery(streamed=True, result=list)
