"""The engine's guard: a small program between the worker and SGLang, so that nothing SGLang starts can outlive it.

    python -I -S guard.py COMMAND…

The guard starts the command as the leader of a new session, and is a subreaper (man 2 PR_SET_CHILD_SUBREAPER): any
descendant of the command that loses its parent becomes the guard's child. A process can leave its group, its session
and its environment behind, but not its guard. When the command ends, or when the worker does, even by SIGKILL, the
guard kills everything that is left and exits.

Its standard input is a socket to the worker. On it the guard writes `pid N` and, as soon as the command has ended,
`status N` (a wait status); at end of file, it kills everything. SIGTERM is passed on to the command only.

It imports nothing from the worker: it has to start in milliseconds and stay small.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

CAUGHT = (signal.SIGCHLD, signal.SIGTERM)

# A process stuck in the kernel (a GPU driver that does not let go) ends by itself as soon as the kernel lets it.
SWEEP_SECONDS = 30.0
SWEEP_PAUSE_SECONDS = 0.005

_PARENT = 1  # field of /proc/PID/stat after the process's name, counted from 0; man 5 proc_pid_stat


def main(command: list[str]) -> None:
    """Run the command until it ends, or until the worker does; then kill all of its descendants."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signals = _catch_signals()
    with socket.socket(fileno=0) as worker:
        leader = _start(command)
        _be_silent()
        _tell(worker, f"pid {leader}\n")
        status = _watch(leader, worker, signals)
        if status is not None:
            _tell(worker, f"status {status}\n")
        _sweep(leader)


def _catch_signals() -> int:
    """Have the signals in CAUGHT written to a pipe, one byte each; returns its read end."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in CAUGHT:
        signal.signal(number, lambda *_: None)
    return read_end


def _start(command: list[str]) -> int:
    guard = os.getpid()
    leader = os.fork()
    if leader:
        return leader
    try:
        signal.set_wakeup_fd(-1)
        for number in (*CAUGHT, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two; its child must not
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:  # else the guard died before prctl took effect
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        os._exit(127)


def _be_silent() -> None:
    """Close our copy of the output, so that it ends with the last of the engine's processes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _tell(worker: socket.socket, line: str) -> None:
    with suppress(OSError):  # the worker is gone; the socket's end of file will say so too
        worker.sendall(line.encode())


def _watch(leader: int, worker: socket.socket, signals: int) -> int | None:
    """The command's wait status once it has ended; None if the worker is gone, or wants everything to end."""
    while True:
        readable, _, _ = select.select([worker.fileno(), signals], [], [])
        with suppress(BlockingIOError):
            if signal.SIGTERM in os.read(signals, 4096):
                os.kill(leader, signal.SIGTERM)
        with suppress(ChildProcessError):
            if (status := _reap(leader)) is not None:
                return status
        if worker.fileno() in readable:  # the worker writes nothing: this is the end of file
            return None


def _reap(leader: int) -> int | None:
    """Reap every child that has ended; returns the leader's status, if it is among them.

    Raises ChildProcessError if there are no children left, and so no descendants either.
    """
    status = None
    while True:
        try:
            pid, ended_with = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if status is None:
                raise
            return status
        if not pid:
            return status
        if pid == leader:
            status = ended_with


def _sweep(leader: int) -> None:
    """Kill every descendant, again and again until none is left: one may have forked in the meantime."""
    deadline = time.monotonic() + SWEEP_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            _reap(leader)
            _kill_descendants(leader)
            time.sleep(SWEEP_PAUSE_SECONDS)


def _kill_descendants(leader: int) -> None:
    try:
        pids = _descendants()
    except OSError:  # no /proc: then only the group
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        return
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[_PARENT])
                children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    unseen = children.get(os.getpid(), [])
    while unseen:
        pid = unseen.pop()
        found.add(pid)
        unseen += children.get(pid, [])
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
