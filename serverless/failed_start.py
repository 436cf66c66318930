"""A worker that cannot start: what it tells the platform, and what becomes of the jobs that are waiting.

If the next worker would fail in the same way, exiting at once helps nobody: the platform starts one worker after the
other, and queued callers wait while the bill runs. Such a worker takes jobs for FAILED_START_SECONDS, and fails each
with the reason. If the cause may be this host's, the worker exits at once, and the jobs are left to the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from common.errors import StartError, UnavailableError
from common.settings import ConfigurationError
from serverless.service import Job, Lifespan, Service

log = logging.getLogger("worker.serverless")

# How many jobs are failed at once: each takes as long as the platform takes to note its result.
JOBS_AT_ONCE = 50


def lifespan_that_fails(error: StartError) -> Lifespan:
    """What answers jobs, where it is known already that nothing can."""

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Service, None]:
        raise error
        yield  # so that this is a generator

    return lifespan


def failing_service(error: StartError, *, seconds: float, mask: Callable[[str], str]) -> Service:
    """A service that fails every job with the reason why nothing can answer it, and breaks after some seconds."""
    reason = mask(f"this worker cannot start: {error}")

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        log.warning("job %s: failed, because this worker cannot start", job.get("id"))
        yield {"error": UnavailableError(reason).as_json()}

    async def is_ready() -> None:
        """Jobs are taken at once."""

    async def wait_for_failure() -> str:
        await asyncio.sleep(seconds)
        return reason

    return Service(handler=handler, wait_until_ready=is_ready, wait_for_failure=wait_for_failure)


def failure_of(error: ConfigurationError, mask: Callable[[str], str]) -> StartError:
    """Wrong settings as a start that failed, with all problems in one line."""
    return StartError(mask("; ".join(error.problems)), check=error.check, is_lasting=error.is_lasting)


async def report_failed_start(error: StartError, *, mask: Callable[[str], str]) -> None:
    """Tell the platform, if it wants to be told, that this worker cannot start."""
    if os.environ.get("RUNPOD_WEBHOOK_PING"):
        from serverless.runpod import report_unhealthy  # the SDK's import takes seconds

        await report_unhealthy(error.check, mask(str(error)))
