"""The heartbeat's processes: it is restarted when it dies, and ends with the worker.

The first heartbeat that the platform answers once the worker is ready logs where its start went: it is the moment at
which the platform can know that this worker is ready.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from common.figures import seconds_by_phase
from common.parent_death import die_with_parent
from serverless import early_sdk

log = logging.getLogger("worker.platform")

# From the end of one heartbeat process to the start of the next.
PAUSE_SECONDS = 1.0
JOIN_SECONDS = 1.0
MAX_START_BYTES = 4096  # of the phases of a start, as JSON

Beat = Callable[[Callable[[], None]], None]
"""Pings the platform for ever, and calls what it is given after each ping that was answered."""


class Heart:
    """Reports to the platform that this worker is alive, from a separate process that ends with this one.

    With the SDK's own start_ping, the heartbeat of a killed worker would go on, and one that stops would go unnoticed.
    Here a keeper process, forked before this process has connections, restarts the heartbeat whenever it dies; the
    worker itself restarts the keeper.
    """

    def __init__(self, beat: Beat, environ: Mapping[str, str]) -> None:
        """beat: is called in the heartbeat's own process, in this environment."""
        self._beat = beat
        self._environ = dict(environ)
        self._start = multiprocessing.RawArray(ctypes.c_char, MAX_START_BYTES)  # shared with the heartbeat's process
        self._keeper: multiprocessing.Process | None = None

    def start(self) -> None:
        """Start the heartbeat, if the platform wants one."""
        if self._environ.get("RUNPOD_WEBHOOK_PING"):
            self._keeper = multiprocessing.Process(
                target=_keep_beating,
                args=(partial(self._beat, partial(_tell_start, self._start)), self._environ),
                name="heartbeat",
                daemon=True,
            )
            self._keeper.start()

    def ready(self, start_seconds: Mapping[str, float]) -> None:
        """The worker is ready: the next heartbeat logs what its start took, by phase, if that is known."""
        phases = {name: round(seconds, 3) for name, seconds in start_seconds.items()}
        if phases and len(text := json.dumps(phases).encode()) < MAX_START_BYTES:
            self._start.value = text

    async def keep(self) -> None:
        """Restart the keeper whenever it ends, until cancelled."""
        while self._keeper is not None:
            await _ended(self._keeper)
            log.error("the heartbeat has stopped (code %s); it is started again", self._keeper.exitcode)
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                self.start()
            except OSError as error:
                log.error("this worker has no heartbeat, and the platform may think it is dead: %s", error.strerror)


async def _ended(process: multiprocessing.Process) -> None:
    """Return when a child has ended."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join(JOIN_SECONDS)


def _tell_start(start: Any) -> None:
    """In the heartbeat's process, after a heartbeat: log what is known of the start, once."""
    try:
        phases: dict[str, float] = json.loads(start.value or b"{}")
    except ValueError:  # it is just being written
        return
    if phases:
        start.value = b""  # also for the heartbeat that would take over from this one
        log.info(
            "first heartbeat of the ready worker; its start took %s",
            seconds_by_phase(phases),
            extra={"fields": {"start_seconds": phases}},
        )


def _keep_beating(beat: Callable[[], None], environ: Mapping[str, str]) -> None:
    """In the keeper: fork the heartbeat, wait for it to end, and repeat."""
    die_with_parent()
    os.environ.clear()
    os.environ.update(environ)
    early_sdk.catch_up(os.environ)
    _close_sockets()
    # Forked from a running event loop, it has that loop's handlers: a signal would tell the worker, and not end it.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C reaches the whole group; the worker decides
    while True:
        heartbeat = os.fork()
        if heartbeat == 0:
            _beat_to_the_end(beat)
        _, status = os.waitpid(heartbeat, 0)
        how = os.waitstatus_to_exitcode(status)
        os.write(2, f"the heartbeat's process ended with code {how}; it is started again\n".encode())
        time.sleep(PAUSE_SECONDS)


def _close_sockets() -> None:
    """A restarted keeper is forked from a process with connections, which could not close while they are open here.

    Pipes stay open: when one of them closes, the worker knows that this process has ended (`Process.sentinel`).
    """
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)


def _beat_to_the_end(beat: Callable[[], None]) -> NoReturn:
    """In the heartbeat's own process."""
    die_with_parent()
    try:
        beat()
    finally:
        os._exit(1)
