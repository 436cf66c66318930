"""SIGTERM and SIGINT as a request to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager


class Stop:
    """A request to stop. Until `gracefully` is set, it cancels the running task; a second request asks to hurry."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self.gracefully = False
        self._task = asyncio.current_task()

    def request(self) -> None:
        """What each signal does."""
        if self.requested.is_set():
            self.hurried.set()
        self.requested.set()
        if not self.gracefully and self._task is not None:
            self._task.cancel()


@contextmanager
def stop_on_signals() -> Generator[Stop, None, None]:
    """Within this context, signals request a stop; the previous handlers are restored at the end."""
    loop, stop = asyncio.get_running_loop(), Stop()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in signals]
    for number in signals:
        loop.add_signal_handler(number, stop.request)
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
