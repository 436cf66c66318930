"""Names handlers that block the event loop: while one does, no other job gets on, and nothing reaches the platform."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

log = logging.getLogger("worker.handler")

BLOCKED_SECONDS = 1.0
TICK_SECONDS = 0.1


@asynccontextmanager
async def named_blocks() -> AsyncGenerator[None, None]:
    """Within this context, whatever blocks the running event loop for a second is named in the log."""
    watch = _Watch(asyncio.get_running_loop())
    watch.tick()
    thread = threading.Thread(target=watch.look, name="loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.stop()
        thread.join()


class _Watch:
    """The loop ticks, and a thread looks whether it still does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._over = threading.Event()
        self._ticked_at = time.monotonic()
        self._blocked_by: str | None = None
        self._next: asyncio.TimerHandle | None = None

    def tick(self) -> None:
        """Called by the loop."""
        now = time.monotonic()
        if self._blocked_by is not None:
            log.warning("%s has blocked the event loop for %.1f s", self._blocked_by, now - self._ticked_at)
            self._blocked_by = None
        self._ticked_at = now
        self._next = self._loop.call_later(TICK_SECONDS, self.tick)

    def stop(self) -> None:
        """End both; called on the loop's thread."""
        self._over.set()
        if self._next is not None:
            self._next.cancel()

    def look(self) -> None:
        """In the thread, until told to stop."""
        while not self._over.wait(TICK_SECONDS):
            silent_seconds = time.monotonic() - self._ticked_at
            if silent_seconds >= BLOCKED_SECONDS and self._blocked_by is None:
                self._name_it()

    def _name_it(self) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._thread_id)
        if task is None or frame is None:  # the loop is waiting for its turn itself: the machine is busy
            return
        self._blocked_by = task.get_name()
        log.warning(
            "%s blocks the event loop, in %s (%s:%d): no other job gets on until it awaits something; make the handler "
            "a plain function, which gets a thread, or call what takes so long with asyncio.to_thread",
            self._blocked_by,
            frame.f_code.co_qualname,
            Path(frame.f_code.co_filename).name,
            frame.f_lineno,
        )
