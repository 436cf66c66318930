"""A platform whose calls are counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple

from common import meters
from serverless.platform import Platform, PlatformError
from serverless.service import Job

Answer = TypeVar("Answer")
Given = TypeVarTuple("Given")


class MeteredPlatform:
    """Another platform, with each of its calls counted by kind and status. A `Platform`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.begun = platform.begun
        self.ended = platform.ended

    def take(self, most: int) -> Coroutine[Any, Any, list[Any]]:
        """As the platform does."""
        return _counted("take", self._platform.take, most)

    def stopped_jobs(self) -> Coroutine[Any, Any, list[str] | None]:
        """As the platform does."""
        return _counted("stop", self._platform.stopped_jobs)

    def post_output(self, job: Job, output: Any) -> Coroutine[Any, Any, None]:
        """As the platform does."""
        return _counted("output", self._platform.post_output, job, output)

    def post_progress(self, job: Job, progress: Any) -> Coroutine[Any, Any, None]:
        """As the platform does."""
        return _counted("progress", self._platform.post_progress, job, progress)

    def post_result(self, job: Job, result: dict[str, Any]) -> Coroutine[Any, Any, None]:
        """As the platform does."""
        return _counted("result", self._platform.post_result, job, result)


async def _counted(kind: str, call: Callable[[*Given], Awaitable[Answer]], *given: *Given) -> Answer:
    """Make one call, and count it; one that is cancelled has no status, and does not count."""
    try:
        answer = await call(*given)
    except PlatformError as error:
        meters.PLATFORM_CALLS.add(kind, str(error.status or "none"))
        raise
    except Exception:
        meters.PLATFORM_CALLS.add(kind, "none")
        raise
    meters.PLATFORM_CALLS.add(kind, "ok")
    return answer
