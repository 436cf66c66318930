"""Polling one of the platform's channels: what may go wrong in a poll, and how long to wait before the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import type_and_place
from serverless.platform import PlatformError

log = logging.getLogger("worker.jobs")

# As the SDK polls (runpod 1.12.0, rp_scale.py): it gives up a long poll after 90 s, and waits 5 s after a 429.
LONG_POLL_SECONDS = 90.0
TOO_MANY_REQUESTS_PAUSE_SECONDS = 5.0
ERROR_PAUSE_SECONDS = 1.0
# A platform without long polls (Waverless) answers "nothing" at once; the next poll then waits this long. So it does
# after an answer with nothing to do in it.
EMPTY_POLL_PAUSE_SECONDS = 0.2
# The same failure, if it repeats, is logged this often.
SAY_AGAIN_SECONDS = 60.0


@dataclass
class Poll:
    """One poll. found: set it if the poll brought something to do."""

    found: bool = False


class Poller:
    """Keeps a channel's polls going: no exception in a poll ends them, and nothing makes them spin."""

    def __init__(self, what: str) -> None:
        """what: completes "could not …" in the log."""
        self.pause_seconds = 0.0
        """How long to wait before the next poll."""
        self._what = what
        self._said: dict[str, float] = {}

    @contextmanager
    def poll(self) -> Generator[Poll, None, None]:
        """Wrap one poll. Swallows every exception but cancellation, and logs what went wrong."""
        poll, began = Poll(), time.monotonic()
        try:
            yield poll
        except TimeoutError:
            self.pause_seconds = self._pause_after(began, found=False)
        except PlatformError as error:
            self.pause_seconds = TOO_MANY_REQUESTS_PAUSE_SECONDS if error.status == 429 else ERROR_PAUSE_SECONDS
            if error.status != 429:
                self._say(logging.WARNING, f"could not {self._what}: {error}")
        except Exception as error:
            self.pause_seconds = ERROR_PAUSE_SECONDS
            name, place = type_and_place(error)
            self._say(logging.ERROR, f"could not {self._what}: unexpected {name}\n{place}")
        else:
            self.pause_seconds = self._pause_after(began, found=poll.found)

    def _pause_after(self, began: float, *, found: bool) -> float:
        answered_at_once = time.monotonic() - began < ERROR_PAUSE_SECONDS
        return EMPTY_POLL_PAUSE_SECONDS if answered_at_once and not found else 0.0

    def _say(self, level: int, message: str) -> None:
        """Log, but the same message only now and then: an outage can last for hours."""
        now = time.monotonic()
        if now - self._said.get(message, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
            self._said = {said: when for said, when in self._said.items() if now - when < SAY_AGAIN_SECONDS}
            self._said[message] = now
            log.log(level, "%s", message)
