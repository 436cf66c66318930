"""Standard output and error that never make this process wait, and that let no secret out.

Whatever reads a worker's log may stop reading: a full disk, a log collector that hangs, a suspended terminal. A process
that writes into a full pipe blocks, while its heartbeat goes on. So each stream becomes a pipe into this process
itself: everything written to it (log records, the engine's output, what RunPod's SDK, other libraries and children such
as the heartbeat print) is read at once by one thread, masked in whole lines, and written out by another, which may
block for as long as it likes. Between the two is a bounded backlog.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress

from common.logs import LogForm, line_of, mask_for
from common.masking import Mask

MAX_BACKLOG_BYTES = 4 * 1024 * 1024  # some 40,000 lines
FLUSH_SECONDS = 1.0  # how long the end of the process waits for a reader
_READ_BYTES = 64 * 1024  # what a pipe holds
_NAMES = ("stdout", "stderr")


def never_wait_for_readers(
    mask: Mask, names: Collection[str] = _NAMES, *, form: LogForm = LogForm.TEXT
) -> Callable[[], None]:
    """Redirect these streams of `sys` for the rest of the process. Call once.

    form: if JSON, each line that is not a JSON object becomes one; text is passed on as it is.

    Returns a function that writes out everything so far, within FLUSH_SECONDS; call it last. Anything written to a
    stream that was closed from the beginning is dropped.
    """
    for descriptor, name in enumerate(_NAMES, start=1):
        if getattr(sys, name) is None:
            _open_null_device(descriptor, name)
    ways = [
        _Way(descriptors, mask, form) for descriptors in _by_destination([_NAMES.index(name) + 1 for name in names])
    ]

    def flush() -> None:
        deadline = time.monotonic() + FLUSH_SECONDS
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, RuntimeError):  # closed already, or being flushed when we interrupted
                stream.flush()
        for way in ways:
            way.stop()
        for way in ways:
            way.wait(deadline)

    return flush


def _open_null_device(descriptor: int, name: str) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    setattr(sys, name, open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


def _by_destination(descriptors: list[int]) -> list[list[int]]:
    """Group descriptors by file. If both have the same one, as after `2>&1`, one `_Way` keeps their lines in order."""
    if len(descriptors) == 2 and os.path.samestat(*map(os.fstat, descriptors)):
        return [descriptors]
    return [[descriptor] for descriptor in descriptors]


class _Way:
    """A pipe in place of a stream, and the two threads that carry what is written to it to the original file."""

    def __init__(self, descriptors: list[int], mask: Mask, form: LogForm = LogForm.TEXT) -> None:
        self._process = os.getpid()
        self._mask = mask
        self._form = form
        self._backlog = _Backlog(form)
        self._destination = os.dup(descriptors[0])
        self._source, write_end = os.pipe()
        self._stopped, self._stop = os.pipe()
        for descriptor in descriptors:
            os.dup2(write_end, descriptor)
        os.close(write_end)
        self._threads = [
            # Daemons: a writer that is blocked by its reader must not keep the process from ending.
            threading.Thread(target=run, name=f"log-{run.__name__.strip('_')}", daemon=True)
            for run in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End once everything written so far has been passed on."""
        if os.getpid() == self._process:  # a forked child has the pipes, but not the threads
            os.write(self._stop, b".")

    def wait(self, deadline: float) -> None:
        """Return when it has ended, or at the deadline."""
        if os.getpid() == self._process:
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _read(self) -> None:
        lines = mask_for(self._form, self._mask)
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        poller.register(self._stopped, select.POLLIN)
        while self._source in dict(poller.poll()):  # else we were told to stop, and nothing is left to read
            if not (data := os.read(self._source, _READ_BYTES)):
                break
            try:
                text = lines.feed(data)
            except Exception as error:  # whatever it is, reading must go on, or this process would block
                what = f"… lines of this log could not be masked ({type(error).__name__}) and are left out"
                text = _note(self._form, what)
            self._backlog.put(text.encode())
        self._backlog.put(lines.rest().encode())
        self._backlog.close()

    def _write(self) -> None:
        while (data := self._backlog.get()) is not None:
            try:
                _write_all(self._destination, data)
            except OSError:  # the reader is gone, or the disk is full; the next lines may get through
                self._backlog.lost(data)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process that has this file open made it non-blocking
            select.select([], [descriptor], [])


class _Backlog:
    """Lines on their way between two threads. If there are too many, the oldest go: the last say why it failed."""

    def __init__(self, form: LogForm) -> None:
        self._form = form
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self._lost_lines = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, data: bytes) -> None:
        """Add whole lines. Never waits for the other thread."""
        with self._changed:
            if data:
                self._chunks.append(data)
                self._bytes += len(data)
            while self._bytes > MAX_BACKLOG_BYTES:
                oldest = self._chunks.popleft()
                self._bytes -= len(oldest)
                self._lost_lines += oldest.count(b"\n")
            self._changed.notify()

    def lost(self, data: bytes) -> None:
        """Count lines that could not be written."""
        with self._changed:
            self._lost_lines += data.count(b"\n")

    def close(self) -> None:
        """Let the other thread end once it has taken what is left."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def get(self) -> bytes | None:
        """Wait for lines; after a gap, the first line says so. None when this is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._closed)
            if not self._chunks:
                return None
            data = self._chunks.popleft()
            self._bytes -= len(data)
            lost, self._lost_lines = self._lost_lines, 0
        what = f"… {lost} lines of this log are missing here: they came faster than they were read"
        return (_note(self._form, what).encode() if lost else b"") + data


def _note(form: LogForm, what: str) -> str:
    return f"{line_of(form, what, level='WARN') if form is LogForm.JSON else what}\n"
