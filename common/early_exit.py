"""SIGTERM and SIGINT before there is an event loop to handle them: the process ends at once, as if told to stop later.

Imports next to nothing, since it comes before everything else: until it has run, a signal's default action ends the
process, with -15 or a traceback instead of an exit code of 0.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType


def exit_on_signals(code: int = 0, *, last: Callable[[], None] = lambda: None) -> None:
    """From now on, either signal calls `last` and ends this process with `code`. Forked children end as usual.

    It does not raise an exception, which would appear in whatever happens to be running: the middle of an import, a
    callback that swallows it. There is nothing to clean up yet: any children of this early phase end with this process.
    """
    process = os.getpid()

    def leave(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child, which inherited this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        try:
            last()
        finally:
            os._exit(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
