"""What the engine writes, on its way to this process's standard error."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from common.masking import Mask

_TAIL_LINES = 200
_MAX_LINE_BYTES = 16 * 1024


class Output:
    """What the engine writes: copied to standard error, secrets masked, its last lines kept."""

    def __init__(self, mask: Mask, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, write: int) -> None:
        self._mask = mask
        self._transport = transport
        self._write_end = write
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._copying = asyncio.create_task(self._copy(reader))

    @classmethod
    async def open(cls, mask: Mask) -> Output:
        """Make the pipe, and begin to copy."""
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        return cls(mask, reader, transport, write_end)

    @contextmanager
    def writable(self) -> Iterator[int]:
        """The descriptor for the child to write to; closed on this side at the end."""
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
        rest = b""
        while chunk := await reader.read(_MAX_LINE_BYTES):
            # Whole lines only, or a secret could slip through in two halves; progress bars end theirs with \r.
            data = rest + chunk
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            if not end and len(data) > _MAX_LINE_BYTES:
                end = len(data)
            rest = data[end:]
            self._write(data[:end])
        self._write(rest)

    def _write(self, data: bytes) -> None:
        text = self._mask(data.decode("utf-8", "replace"))
        self._tail.extend(text.splitlines())
        with suppress(OSError, ValueError):  # nobody reads our log any more; the engine must not stall for that
            sys.stderr.write(text)
            sys.stderr.flush()
