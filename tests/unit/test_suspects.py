"""Which request killed an engine: found from repeated deaths, and by trying suspects alone if there are several."""

from __future__ import annotations

import asyncio

import pytest

from sglang_engine import suspects
from sglang_engine.suspects import Suspects, Ticket

pytestmark = pytest.mark.anyio


def tickets(names: str) -> list[Ticket]:
    return [Ticket(name) for name in names]


async def goes(found: Suspects, ticket: Ticket) -> bool:
    """Whether a request may go now, and then it goes."""
    waiting = asyncio.create_task(found.wait_for_turn(ticket))
    for _ in range(5):
        await asyncio.sleep(0)
    if waiting.done():
        found.goes(ticket)
        return True
    waiting.cancel()
    return False


async def test_request_that_two_engines_died_under_is_the_cause_where_it_is_the_only_one() -> None:
    found, (a, b, c) = Suspects(), tickets("abc")
    assert found.engine_died(0, [a, b]) is None
    assert await goes(found, a), "the first time, all are sent again together"
    assert await goes(found, b)
    assert found.engine_died(1, [c, a]) is a
    assert (a.is_given_up, b.is_given_up, c.is_given_up) == (True, False, False)
    assert await goes(found, c)


async def test_several_suspects_are_tried_alone_who_came_last_first() -> None:
    found, (a, b, c, new) = Suspects(), tickets("abcn")
    assert found.engine_died(0, [a, b, c]) is None
    assert found.engine_died(1, [a, b, c]) is None
    assert not await goes(found, a)
    assert not await goes(found, new)
    assert await goes(found, c)
    assert not await goes(found, b), "c is on trial"
    found.answered(c)
    assert await goes(found, b)
    assert found.engine_died(2, [b]) is b
    assert await goes(found, a), "with the cause gone, the others go together"
    assert await goes(found, new)
    assert (a.is_given_up, b.is_given_up) == (False, True)


async def test_trial_begins_when_the_request_goes_and_not_while_it_waits_for_the_next_engine() -> None:
    found, (a, b) = Suspects(), tickets("ab")
    for life in range(2):
        found.engine_died(life, [a, b])
    await found.wait_for_turn(b)  # it is its turn, but the engine is not ready yet
    await asyncio.wait_for(found.wait_for_turn(b), 10)
    found.goes(b)
    assert not await goes(found, a)
    assert found.engine_died(2, [b]) is b


async def test_who_came_last_is_tried_first_in_whatever_order_they_were_sent_again() -> None:
    found, (a, b, c) = Suspects(), tickets("abc")
    found.engine_died(0, [a, b, c])
    found.engine_died(1, [c, a, b])
    assert not await goes(found, b)
    assert await goes(found, c)


async def test_trial_ends_by_time_or_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "TRIAL_SECONDS", 0.05)
    found, (a, b) = Suspects(), tickets("ab")
    found.engine_died(0, [a, b])
    found.engine_died(1, [a, b])
    assert await goes(found, b)
    await asyncio.wait_for(found.wait_for_turn(a), 10)
    found.clear(a)
    assert await goes(found, Ticket())


async def test_request_that_leaves_while_it_waits_for_its_trial_holds_nobody_up() -> None:
    found, (a, b) = Suspects(), tickets("ab")
    found.engine_died(0, [a, b])
    found.engine_died(1, [a, b])
    found.clear(b)
    assert await goes(found, a)


async def test_only_so_many_are_tried() -> None:
    found, many = Suspects(), tickets("abcdefghijklmnop")
    found.engine_died(0, many)
    found.engine_died(1, many)
    for ticket in reversed(many[-suspects.MAX_TRIALS :]):
        assert await goes(found, ticket)
        found.answered(ticket)
    assert await goes(found, many[0])


async def test_request_is_given_up_after_so_many_deaths_whoever_caused_them() -> None:
    found, (a, b) = Suspects(), tickets("ab")
    for life in range(suspects.MAX_DEATHS):
        found.engine_died(life, [a, b])
    assert a.is_given_up
    assert not a.is_likely_cause


async def test_deaths_of_a_poisoned_request_are_pardoned_while_others_are_answered() -> None:
    found, (a, b, c, d) = Suspects(), tickets("abcd")
    for life, ticket in enumerate([a, a]):
        found.engine_died(life, [ticket])
    assert found.pardoned == {0, 1}
    for life, ticket in enumerate([b, b], start=2):
        found.engine_died(life, [ticket])
    assert found.pardoned == {0, 1}, "nobody was answered in between: it may be the engine"
    found.answered(c)
    for life, ticket in enumerate([d, d], start=4):
        found.engine_died(life, [ticket])
    assert found.pardoned == {0, 1, 4, 5}
