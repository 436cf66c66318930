"""Whose turn it is over plain HTTP, where there is no queue to leave requests in.

As many requests as the engine can take at once go to it (`sglang_engine.capacity`, or MAX_CONCURRENCY=N). As many again
wait here for their turn; beyond that a request is refused with 503 and `Retry-After`, so that a load balancer or the
client can go to another worker while that still helps. Until it is known what the engine can take, MAX_WAITING_JOBS may
wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from common import job_record, meters
from common.errors import UnavailableError
from common.tasks import cancel
from sglang_engine.capacity import Capacity


class Turns:
    """Lets requests to the engine, first come, first served."""

    def __init__(self, capacity: Capacity | int, *, most_waiting: int, timeout_seconds: float) -> None:
        """capacity: how many at once. most_waiting: how many wait while that is not known for sure.

        timeout_seconds: how long one waits at most.
        """
        self._most_waiting = most_waiting
        self._capacity = capacity
        if isinstance(capacity, int):
            meters.CAPACITY.set(capacity)
            meters.CAPACITY_LIMIT.set(1, "fixed")
        self._timeout_seconds = timeout_seconds
        self._is_open = False
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._growth: asyncio.Task[None] | None = None

    @property
    def at_once(self) -> int:
        """How many requests go to the engine at once."""
        return self._capacity if isinstance(self._capacity, int) else self._capacity.at_once

    @property
    def active(self) -> int:
        """How many have their turn."""
        return self._active

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return len(self._waiting)

    @asynccontextmanager
    async def counted(self) -> AsyncGenerator[None, None]:
        """Count within this context, while the engine is warm. Before it, requests wait for the engine itself."""
        async with AsyncExitStack() as stack:
            if isinstance(self._capacity, Capacity):
                await stack.enter_async_context(self._capacity.kept())
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False
                await cancel(self._growth)
                self._let_in()

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Wait for a turn, and have it within this context. Raises UnavailableError if too many are waiting."""
        await self._wait()
        try:
            yield
        finally:
            self._active -= 1
            self._let_in()

    async def _wait(self) -> None:
        if self._is_free() and not self._waiting:
            self._active += 1
            return
        if len(self._waiting) >= self._room():
            raise UnavailableError(
                f"the engine is full: {self._active} requests are under way and {len(self._waiting)} wait for their "
                "turn; send this again to another worker, or a little later"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._watch_growth()
        try:
            with job_record.current().waiting():
                async with asyncio.timeout(self._timeout_seconds):
                    await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled():  # let in at the very moment at which it left
                self._active -= 1
                self._let_in()
            if isinstance(error, TimeoutError):
                raise UnavailableError(
                    f"the engine was full for {self._timeout_seconds:g} s (REQUEST_TIMEOUT_SECONDS)"
                ) from None
            raise

    def _room(self) -> int:
        if isinstance(self._capacity, Capacity) and not self._capacity.is_settled:
            return self._most_waiting
        return self.at_once

    def _is_free(self) -> bool:
        return not self._is_open or self._active < self.at_once

    def _let_in(self) -> None:
        while self._waiting and self._is_free():
            turn = self._waiting.popleft()
            if not turn.done():
                self._active += 1
                turn.set_result(None)

    def _watch_growth(self) -> None:
        if isinstance(self._capacity, Capacity) and (self._growth is None or self._growth.done()):
            self._growth = asyncio.create_task(self._grow(self._capacity), name="letting in more requests")

    async def _grow(self, capacity: Capacity) -> None:
        while self._waiting:
            await capacity.wait_until_above(self._active)
            self._let_in()
            await asyncio.sleep(0)  # those that were let in begin
