"""A process for work that would hold this one's interpreter for too long, one task after another.

A thread would not do: Python's JSON never releases the GIL while it reads or writes a text. The process is started for
its first task, ends with this one, and is restarted after a task that killed it or took too long.

The two exchange frames: eight bytes of length, then the bytes. A task is a frame with the function's name and
arguments, then its data in any number of frames, then an empty one. Each result is a frame that begins with a byte
saying what it is.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pickle
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.parent_death import die_with_parent

PROGRAM = Path(__file__).parents[1]

# For one result of one task; far more than 20 MB of JSON takes on a slow machine.
RESULT_SECONDS = 60.0
_PIPE_BYTES = 1024 * 1024
_LENGTH = struct.Struct("!Q")
_RESULT, _ERROR, _END = b"R", b"E", b"."

Task = Callable[..., Iterable[Any]]
"""A module-level function. It takes the data as bytes, then its arguments, and gives its results in order."""


class HelperError(Exception):
    """The helper process did not do its task: it was killed, or took too long."""


class HelperProcess:
    """Runs tasks in order. An async context manager; leaving it ends the process."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> HelperProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def run(self, task: Task, data: bytes | list[bytes], **arguments: Any) -> Any:
        """The one result of a task. Raises what it raises, or HelperError."""
        [result] = [result async for result in self.results(task, data, **arguments)]
        return result

    async def results(self, task: Task, data: bytes | list[bytes], **arguments: Any) -> AsyncGenerator[Any, None]:
        """The results of a task, each as soon as it is available. Raises what it raises, or HelperError.

        data: bytes, or pieces of them. arguments and results must be picklable.
        """
        async with self._turn:
            finished = False
            try:
                process = await self._running()
                sending = asyncio.create_task(_send(process, task, data, arguments))
                try:
                    while (result := await _receive(process)) is not _END:
                        yield result
                    finished = True
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
            except _TaskError as error:
                finished = True
                raise error.error from None
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                raise HelperError(f"the helper process failed ({type(error).__name__})") from error
            finally:
                if not finished:  # whatever it is doing, the next task must not run into it
                    await self._end()

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-c",
                    f"import sys; sys.path[0] = {str(PROGRAM)!r}; import {__name__} as m; m.main()",
                ),
                stdin=PIPE,
                stdout=PIPE,
                limit=_PIPE_BYTES,
            )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _TaskError(Exception):
    """A task raised an error of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


async def _send(process: Process, task: Task, data: bytes | list[bytes], arguments: dict[str, Any]) -> None:
    pieces = [data] if isinstance(data, bytes) else data
    for frame in (pickle.dumps((task.__module__, task.__qualname__, arguments)), *filter(None, pieces), b""):
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(_LENGTH.pack(len(frame)))
        process.stdin.write(frame)
        await process.stdin.drain()


async def _receive(process: Process) -> Any:
    """The next result, or _END. Raises _TaskError, and what reading a pipe raises."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    async with asyncio.timeout(RESULT_SECONDS):
        (length,) = _LENGTH.unpack(await process.stdout.readexactly(_LENGTH.size))
        frame = await process.stdout.readexactly(length)
    match frame[:1]:
        case kind if kind == _END:
            return _END
        case kind if kind == _ERROR:
            raise _TaskError(pickle.loads(frame[1:]))  # noqa: S301 - from our own process
    return pickle.loads(memoryview(frame)[1:])  # noqa: S301


def main() -> None:
    """The helper process: do tasks until standard input ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C reaches the whole group; the worker decides
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not be mistaken for a result
    while (head := sys.stdin.buffer.read(_LENGTH.size)) and (frames := list(_frames(sys.stdin.buffer, head))):
        module, name, arguments = pickle.loads(frames[0])  # noqa: S301
        try:
            task: Task = getattr(importlib.import_module(module), name)
            data = frames[1] if len(frames) == 2 else b"".join(frames[1:])
            frames.clear()
            for result in task(data, **arguments):
                _write(results, _RESULT + pickle.dumps(result, protocol=5))
            _write(results, _END)
        except Exception as error:
            _write(results, _ERROR + pickle.dumps(error))


def _frames(source: BinaryIO, head: bytes) -> Iterator[bytes]:
    while length := _LENGTH.unpack(head)[0]:
        yield source.read(length)
        head = source.read(_LENGTH.size)


def _write(results: BinaryIO, frame: bytes) -> None:
    results.write(_LENGTH.pack(len(frame)))
    results.write(frame)
    results.flush()
