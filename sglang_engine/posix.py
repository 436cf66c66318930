"""Processes seen from outside: which ones a group has, what they are called, and when one ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Fields of /proc/PID/stat after the process's name, counted from 0; man 5 proc_pid_stat.
_STATE, _GROUP, _EXIT_STATUS = 0, 2, 49

# Between two looks at a process whose end the kernel does not report.
POLL_SECONDS = 0.05


def group_members(leader_pid: int) -> list[int]:
    """The living processes of a group; empty where there is no /proc to tell.

    Raises OSError where /proc cannot be read, as when descriptors have run out.
    """
    return [pid for pid, fields in _processes() if int(fields[_GROUP]) == leader_pid and fields[_STATE] != "Z"]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet asked for its status does not.

    Where /proc does not show it, this is as far as a signal can tell: such a process counts as alive until it is asked.
    """
    fields = None
    with suppress(OSError):
        fields = _stat(pid)
    return fields[_STATE] != "Z" if fields else _takes_signals(pid)


def name_of(pid: int) -> str:
    """What a process calls itself: the first word of its command line, empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
    return ""


async def wait_for_exit(pid: int) -> int | None:
    """Return when a process ends, which need not be a child of this one.

    The result is its code as in `subprocess` (negative for a signal), None where it cannot be told any more.

    The kernel reports the end. Where it refuses to (EPERM or ENOSYS in a sandbox, EMFILE when descriptors have run
    out), the process is looked at every POLL_SECONDS.
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
    """From a process that has ended, while its parent has not asked for its status yet."""
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
    """The fields of /proc/PID/stat after the name, which may hold spaces; None where there is no such process.

    Raises OSError where it cannot be read.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
