"""SIGTERM and SIGINT before there is a loop that could take them: the process ends at once, as one told to stop.

Imports next to nothing, since it comes before everything else: until it does, a signal's default action ends the
process, with -15 or a traceback for an exit code of 0.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType


def exit_on_signals(code: int = 0, *, last: Callable[[], None] = lambda: None) -> None:
    """From now on each of the two ends this process with that code, after a call of `last`; its children as usual.

    Not by an exception, which would come up in whatever happens to run: the middle of an import, a callback that
    swallows it. There is nothing to tidy up yet: the children that a start may have end with this process.
    """
    process = os.getpid()

    def leave(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked child, which has inherited this
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        try:
            last()
        finally:
            os._exit(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
