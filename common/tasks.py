"""asyncio tasks: ending them together, and never silently."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from common.errors import type_and_place

log = logging.getLogger("worker.tasks")

# A cancelled task may have to clean up; one that takes longer than this is abandoned, and the log says so.
CANCEL_SECONDS = 10.0


async def cancel(*tasks: asyncio.Task[Any] | None, timeout_seconds: float = CANCEL_SECONDS) -> None:
    """Cancel tasks and return once all have ended. What they raise is dropped; None is skipped.

    A task that does not end in time is named in the log and no longer waited for.
    """
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if not running:
        return
    ended, lingering = await asyncio.wait(running, timeout=timeout_seconds)
    for task in ended:
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would complain that it never was
    for task in lingering:
        log.error("the task %s did not end when it was cancelled", task.get_name())


def reason_of_end(task: asyncio.Task[Any], what: str) -> str:
    """A clause that says why a task ended though it should not have; an exception's traceback goes to the log.

    what: names the task's work, as in "taking jobs".
    """
    if task.cancelled():
        return f"{what} was cancelled"
    if (error := task.exception()) is None:
        return f"{what} ended"
    log.error("%s raised %s:\n%s", what, *type_and_place(error))
    return f"{what} ended with {type(error).__name__}"
