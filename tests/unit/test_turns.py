"""Whose turn it is over plain HTTP: as many as fit, as many again that wait, the rest refused."""

from __future__ import annotations

import asyncio

import pytest

from common.errors import UnavailableError
from gateway.http_server.turns import Turns
from tests.waiting import turns_of_the_loop

pytestmark = pytest.mark.anyio


class Guests:
    """Requests that come and go on cue, in the order of their numbers."""

    def __init__(self, turns: Turns) -> None:
        self.inside: list[int] = []
        self._turns = turns
        self._leave: dict[int, asyncio.Event] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self._leave[number] = asyncio.Event()
            self._tasks[number] = asyncio.create_task(self._visit(number))
            await turns_of_the_loop()

    async def leave(self, number: int) -> None:
        self._leave[number].set()
        await turns_of_the_loop()

    async def hang_up(self, number: int) -> None:
        self._tasks[number].cancel()
        await turns_of_the_loop()

    async def refusal(self, number: int) -> str:
        with pytest.raises(UnavailableError) as refused:
            await self._tasks[number]
        return refused.value.message

    async def all_leave(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _visit(self, number: int) -> None:
        async with self._turns.turn():
            self.inside.append(number)
            try:
                await self._leave[number].wait()
            finally:
                self.inside.remove(number)


async def test_as_many_as_fit_go_in_as_many_again_wait_and_the_next_is_refused() -> None:
    turns = Turns(2, most_waiting=0, timeout_seconds=60)
    guests = Guests(turns)
    async with turns.counted():
        await guests.come(1, 2, 3, 4, 5)
        assert (guests.inside, turns.active, turns.waiting) == ([1, 2], 2, 2)
        assert "2 requests are under way and 2 wait" in await guests.refusal(5)
        await guests.leave(2)
        assert guests.inside == [1, 3], "first come, first served"
        await guests.hang_up(4)
        await guests.leave(1)
        assert (guests.inside, turns.active, turns.waiting) == ([3], 1, 0)
        await guests.all_leave()
    assert turns.active == 0


async def test_turn_of_one_that_leaves_at_that_very_moment_goes_to_the_next() -> None:
    turns = Turns(1, most_waiting=0, timeout_seconds=60)
    guests = Guests(turns)
    async with turns.counted():
        await guests.come(1)
        first = asyncio.create_task(turns._wait())
        await turns_of_the_loop()
        guests._leave[1].set()
        while turns.waiting:
            await asyncio.sleep(0)
        first.cancel()  # it has its turn, and has not noticed yet
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(turns._wait())
        await turns_of_the_loop()
        assert second.done()
        assert turns.active == 1
        await guests.all_leave()


async def test_nobody_waits_longer_than_the_time_out() -> None:
    turns = Turns(1, most_waiting=0, timeout_seconds=0.01)
    guests = Guests(turns)
    async with turns.counted():
        await guests.come(1, 2)
        assert await guests.refusal(2) == "the engine was full for 0.01 s (REQUEST_TIMEOUT_SECONDS)"
        assert (turns.active, turns.waiting) == (1, 0)
        await guests.all_leave()


async def test_before_the_engine_is_warm_everybody_goes_on_to_wait_for_it() -> None:
    turns = Turns(1, most_waiting=0, timeout_seconds=60)
    guests = Guests(turns)
    await guests.come(1, 2, 3)
    assert guests.inside == [1, 2, 3]
    async with turns.counted():
        await guests.come(4)
        await guests.leave(1)
        await guests.leave(2)
        assert guests.inside == [3]
        await guests.leave(3)
        assert guests.inside == [4]
    await guests.all_leave()
