"""A command under a guard (`guard.py`): it and all its descendants end together, and no later than this process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

from sglang_engine.early_start import GUARD
from sglang_engine.posix import wait_for_exit

# Python without site-packages starts in 20 ms; a machine that takes longer than this has other problems.
GUARD_START_SECONDS = 30.0


class GuardedProcess:
    """A running command. `start` makes one."""

    def __init__(self, guard: asyncio.subprocess.Process | _EarlyGuard, line: _Line, pid: int) -> None:
        self.pid = pid
        """The command's own process, which leads a session and a process group."""
        self._guard = guard
        self._line = line

    @classmethod
    async def start(cls, command: Sequence[str], *, environ: Mapping[str, str], output: int) -> Self:
        """Start a command, which begins with an absolute path. output: the descriptor that it writes to.

        Raises OSError if that is not possible.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                guard = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", str(GUARD), *command),
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=output,
                    env=environ,
                    start_new_session=True,
                )
        except BaseException:
            ours.close()  # ends the guard, if there is one
            raise
        return await cls._of(guard, ours)

    @classmethod
    async def adopt(cls, guard: subprocess.Popen[bytes], ours: socket.socket) -> Self:
        """Take over a command that was started before there was an event loop (`early_start`). Raises as `start`."""
        return await cls._of(_EarlyGuard(guard), ours)

    @classmethod
    async def _of(cls, guard: asyncio.subprocess.Process | _EarlyGuard, ours: socket.socket) -> Self:
        try:
            ours.setblocking(False)
            _, line = await asyncio.get_running_loop().create_connection(_Line, sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            async with asyncio.timeout(GUARD_START_SECONDS):
                pid = await line.pid
        except BaseException:
            line.close()
            raise
        if pid is None:
            raise ChildProcessError("its guard has ended; the lines before this one say why")
        return cls(guard, line, pid)

    @property
    def has_ended(self) -> bool:
        """Whether the command is known to have ended."""
        return self._line.code.done()

    async def wait(self) -> int | None:
        """Return once the command has ended: its code as in `subprocess`, None if it is not known."""
        return await asyncio.shield(self._line.code)

    def terminate(self) -> None:
        """Send SIGTERM to the command only."""
        if self._guard.returncode is None:
            self._guard.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the command and all its descendants; returns at once."""
        self._line.close()

    async def wait_for_all(self) -> None:
        """Return once all of them are gone, some time after `kill` or after the command's own end."""
        await self._guard.wait()


class _EarlyGuard:
    """A guard that was started without asyncio."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    async def wait(self) -> None:
        await wait_for_exit(self._process.pid)
        self._process.wait()


class _Line(asyncio.Protocol):
    """Our end of the guard's socket: what the guard reports about the command."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int | None] = loop.create_future()
        self.code: asyncio.Future[int | None] = loop.create_future()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            name, _, number = line.partition(b" ")
            if name == b"pid":
                _settle(self.pid, int(number))
            else:
                _settle(self.code, os.waitstatus_to_exitcode(int(number)))

    def connection_lost(self, error: Exception | None) -> None:
        _settle(self.pid, None)
        _settle(self.code, None)

    def close(self) -> None:
        self._transport.abort()


def _settle(future: asyncio.Future[int | None], value: int | None) -> None:
    if not future.done():
        future.set_result(value)
