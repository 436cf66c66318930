"""File descriptors, one per connection: how many there may be, and how to tell when there are none left."""

from __future__ import annotations

import errno
import os
import resource

# For the process itself: its log, event loop, engine and heartbeat, the probes and polls, and whatever libraries open.
RESERVED = 64
# What SGLang sets for itself (set_ulimit). Containers may allow a billion, and some programs try to close every one.
AT_MOST = 65_535


def keep_standard_descriptors() -> None:
    """Open the null device in place of a standard stream that was closed from the beginning.

    Otherwise the next socket or pipe would get its number, and with it whatever is written to the stream.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def raise_descriptor_limit() -> None:
    """Allow this process and its children as many descriptors as the system permits: the hard limit, or AT_MOST.

    Many systems start programs with a soft limit of 1024, for the sake of programs that call select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = AT_MOST if hard == resource.RLIM_INFINITY else min(hard, AT_MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_allowed() -> int:
    """How many connections to the engine there may be at once.

    Half of what is left after RESERVED: every answer from the engine goes to a client or a platform, which takes a
    connection too. At least one.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, ((AT_MOST if soft == resource.RLIM_INFINITY else soft) - RESERVED) // 2)


def lacks_descriptors(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that this process or the system is out of file descriptors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False
