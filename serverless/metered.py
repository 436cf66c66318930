"""A platform whose calls are counted."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from common import meters
from serverless.platform import Platform, PlatformError
from serverless.service import Job


class MeteredPlatform:
    """Another platform, with each of its calls counted by kind and status. A `Platform`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.begun = platform.begun
        self.ended = platform.ended

    async def take(self, most: int) -> list[Any]:
        """As the platform does."""
        with _counted("take"):
            return await self._platform.take(most)

    async def stopped_jobs(self) -> list[str] | None:
        """As the platform does."""
        with _counted("stop"):
            return await self._platform.stopped_jobs()

    async def post_output(self, job: Job, output: Any) -> None:
        """As the platform does."""
        with _counted("output"):
            await self._platform.post_output(job, output)

    async def post_progress(self, job: Job, progress: Any) -> None:
        """As the platform does."""
        with _counted("progress"):
            await self._platform.post_progress(job, progress)

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        """As the platform does."""
        with _counted("result"):
            await self._platform.post_result(job, result)


@contextmanager
def _counted(kind: str) -> Generator[None, None, None]:
    """Count one call; one that is cancelled has no status, and does not count."""
    try:
        yield
    except PlatformError as error:
        meters.PLATFORM_CALLS.add(kind, str(error.status or "none"))
        raise
    except Exception:
        meters.PLATFORM_CALLS.add(kind, "none")
        raise
    meters.PLATFORM_CALLS.add(kind, "ok")
