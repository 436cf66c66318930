"""Processes that this one started, and theirs: ended as a group, and their end noticed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Fields of /proc/PID/stat after the process's name, counted from 0; man 5 proc_pid_stat.
_STATE, _GROUP, _EXIT_STATUS = 0, 2, 49

# Waits for the end of its standard input, which only this process holds open, then ends the group. A shell, since it
# must not die with anyone and should cost nothing.
_GUARD = 'read -r _; kill -KILL -"$0"'


def kill_group(leader_pid: int) -> None:
    """SIGKILL to whatever is left of the process group that `leader_pid` leads, or led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


class GroupGuard:
    """A process that outlives this one just long enough to kill a group, when this one ends without doing so.

    The parent-death signal reaches the group's leader only; its children need not have asked for one.
    """

    def __init__(self, leader_pid: int) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(leader_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )

    def dismiss(self) -> None:
        """End the guard; the group is left alone."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def group_members(leader_pid: int) -> list[int]:
    """The living processes of a group; empty where there is no /proc to tell."""
    return [pid for pid, fields in _processes() if int(fields[_GROUP]) == leader_pid and fields[_STATE] != "Z"]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet asked for its status does not."""
    fields = _stat(pid)
    return fields is not None and fields[_STATE] != "Z"


def name_of(pid: int) -> str:
    """What a process calls itself: the first word of its command line, empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
    return ""


async def wait_for_exit(pid: int) -> int | None:
    """Return when a process ends, which need not be a child of this one.

    The result is its code as in `subprocess` (negative for a signal), None where it cannot be told any more.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    with suppress(ProcessLookupError), _pidfd(pid) as descriptor:
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
    return _exit_code(pid)


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _exit_code(pid: int) -> int | None:
    """From a process that has ended, while its parent has not asked for its status yet."""
    fields = _stat(pid)
    if fields is None or fields[_STATE] != "Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[_EXIT_STATUS]))


def _processes() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if fields := _stat(pid):
            yield pid, fields


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
