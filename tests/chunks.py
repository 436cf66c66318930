"""A stream's bytes, as they come from an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.pacing import FixedPacer


class Source:
    """Chunks that were collected by the time that they are asked for; ends with an exception if there is one."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks = list(chunks)
        self.given = 0
        self.holds: list[float] = []
        self._error = error

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.chunks:
            self.given += 1
            return self.chunks.pop(0)
        if self._error:
            raise self._error
        raise StopAsyncIteration

    @property
    def has_more(self) -> bool:
        return bool(self.chunks)

    async def hold(self, seconds: float) -> None:
        self.holds.append(seconds)


NO_CEILING = FixedPacer(0.0)
