"""Other processes: which ones are in a group, what they are called, and when one ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Fields of /proc/PID/stat after the process's name, counted from 0; man 5 proc_pid_stat.
_STATE, _GROUP, _EXIT_STATUS = 0, 2, 49

# How often to check on a process whose end the kernel does not report.
POLL_SECONDS = 0.05


def group_members(leader_pid: int) -> list[int]:
    """The living processes of a group; empty if there is no /proc.

    Raises OSError if /proc cannot be read, as when descriptors have run out.
    """
    return [pid for pid, fields in _processes() if int(fields[_GROUP]) == leader_pid and fields[_STATE] != "Z"]


def is_alive(pid: int) -> bool:
    """Whether a process is running; one that has ended but has not been reaped is not.

    If /proc does not show it, only a signal can tell, and then a process counts as alive until it is reaped.
    """
    fields = None
    with suppress(OSError):
        fields = _stat(pid)
    return fields[_STATE] != "Z" if fields else _takes_signals(pid)


def name_of(pid: int) -> str:
    """What a process calls itself: the first word of its command line; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
    return ""


async def wait_for_exit(pid: int) -> int | None:
    """Return when a process ends. It need not be a child of this one.

    The result is its code as in `subprocess` (negative for a signal), None if it is no longer known.

    The kernel reports the end. If it refuses to (EPERM or ENOSYS in a sandbox, EMFILE when descriptors have run out),
    the process is checked every POLL_SECONDS.
    """
    try:
        await _wait_for_report(pid)
    except OSError:
        while is_alive(pid):
            await asyncio.sleep(POLL_SECONDS)
    return _exit_code(pid)


async def _wait_for_report(pid: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _pidfd(pid) as descriptor:
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _exit_code(pid: int) -> int | None:
    """The code of a process that has ended, as long as its parent has not reaped it."""
    with suppress(OSError):
        fields = _stat(pid)
        if fields is not None and fields[_STATE] == "Z":
            return os.waitstatus_to_exitcode(int(fields[_EXIT_STATUS]))
    return None


def _takes_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _processes() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if fields := _stat(pid):
            yield pid, fields


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may contain spaces; None if there is no such process.

    Raises OSError if it cannot be read.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
