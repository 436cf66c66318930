"""What the engine writes, on its way to the log."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from common.logs import form_in_use
from common.masking import LineMask, Mask
from sglang_engine.engine_lines import EngineLines

_TAIL_LINES = 200
_READ_BYTES = 64 * 1024


class Output:
    """What the engine writes: put into the log with secrets masked (`engine_lines`); the last lines are kept."""

    def __init__(
        self, mask: Mask, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, write: int | None
    ) -> None:
        self._mask = mask
        self._transport = transport
        self._write_end = write
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._lines = EngineLines(form_in_use())
        self.on_text: Callable[[str], None] = lambda _: None
        """Called with whole lines of what the engine writes."""
        self._copying = asyncio.create_task(self._copy(reader))

    @classmethod
    async def open(cls, mask: Mask) -> Output:
        """Make the pipe, and start copying."""
        read_end, write_end = os.pipe()
        return await cls.of(mask, read_end, write_end)

    @classmethod
    async def of(cls, mask: Mask, read_end: int, write_end: int | None = None) -> Output:
        """Start copying from a pipe that is there."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        return cls(mask, reader, transport, write_end)

    @contextmanager
    def writable(self) -> Iterator[int]:
        """The descriptor for the child to write to; closed on this side at the end."""
        assert self._write_end is not None  # noqa: S101 - made by `open`
        try:
            yield self._write_end
        finally:
            os.close(self._write_end)

    async def rest(self, timeout_seconds: float) -> str:
        """The last lines, once everything has been read, or after the timeout."""
        await asyncio.wait({self._copying}, timeout=timeout_seconds)
        return "\n".join(self._tail)

    def close(self) -> None:
        """Stop copying."""
        self._copying.cancel()
        self._transport.close()

    async def _copy(self, reader: asyncio.StreamReader) -> None:
        lines = LineMask(self._mask)
        while data := await reader.read(_READ_BYTES):
            self._pass_on(lines.feed(data))
        self._pass_on(lines.rest())
        _write(self._lines.rest())

    def _pass_on(self, text: str) -> None:
        self._tail.extend(text.splitlines())
        self.on_text(text)
        _write(self._lines.of(text))


def _write(text: str) -> None:
    if text:
        with suppress(OSError, ValueError):  # the engine must not stall because of a log that cannot be written
            sys.stderr.write(text)
            sys.stderr.flush()
