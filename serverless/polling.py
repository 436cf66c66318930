"""One poll of the platform: what may go wrong in it, and how long to wait before the next."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from serverless.platform import PlatformError

log = logging.getLogger("worker.jobs")

# How the SDK polls (runpod 1.12.0, rp_scale.py): a long poll is given up after 90 s, "too many requests" costs 5 s.
LONG_POLL_SECONDS = 90.0
TOO_MANY_REQUESTS_PAUSE_SECONDS = 5.0
ERROR_PAUSE_SECONDS = 1.0
# A platform without long polls (Waverless) answers "nothing" at once; such a poll is repeated after a pause.
EMPTY_POLL_PAUSE_SECONDS = 0.2


@dataclass
class Poll:
    """A context around one poll. It swallows PlatformError and TimeoutError, and then knows how long to pause.

    what: completes "could not …" in the log. found: to be set when the poll has brought something.
    """

    what: str
    found: bool = False
    pause_seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Poll:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        match error:
            case None:
                answered_at_once = time.monotonic() - self._began < ERROR_PAUSE_SECONDS
                self.pause_seconds = EMPTY_POLL_PAUSE_SECONDS if answered_at_once and not self.found else 0.0
            case TimeoutError():
                self.pause_seconds = 0.0
            case PlatformError(status=429):
                self.pause_seconds = TOO_MANY_REQUESTS_PAUSE_SECONDS
            case PlatformError():
                log.warning("could not %s: %s", self.what, error)
                self.pause_seconds = ERROR_PAUSE_SECONDS
        return isinstance(error, (PlatformError, TimeoutError))
