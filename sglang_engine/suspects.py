"""Finds out which request killed the engine, so that one poisoned request costs neither the others nor the worker.

Nobody can tell from outside which of the requests in flight killed an engine. So each is sent again, once, together
with the others. If a second engine dies and only one of its requests has been through this before, that one is the
likely cause. If there are several, they are tried one by one, each alone, until another engine dies under one of them;
the rest are then sent again together. A trial is over at the first sign of an answer, or after TRIAL_SECONDS: a request
that kills an engine does so when it is first computed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

TRIAL_SECONDS = 10.0
# Trials hold up everybody else. The culprit is nearly always among those that were sent last.
MAX_TRIALS = 8
# After how many engines have died under it a request is given up, whoever caused the deaths.
MAX_DEATHS = 4


@dataclass(eq=False)
class Ticket:
    """One request, through all its attempts."""

    label: str = ""
    """How the log names it."""
    deaths: list[int] = field(default_factory=list)
    """The lives of the engines that died under it before it had an answer."""
    is_likely_cause: bool = False
    number: int = field(default_factory=itertools.count().__next__)
    """Its place in the order in which requests came; they are sent again in any order."""

    @property
    def is_given_up(self) -> bool:
        """Whether it must not be sent again."""
        return self.is_likely_cause or len(self.deaths) >= MAX_DEATHS


class Suspects:
    """The requests that may have killed an engine."""

    def __init__(self) -> None:
        self.pardoned: set[int] = set()
        """The lives that were ended by one request; their ends say nothing about the engine or the machine."""
        self._on_trial: Ticket | None = None
        self._awaiting_trial: list[Ticket] = []  # the last one sent comes last, and is tried first
        self._answered = 1  # requests answered since the last pardon; the engine's own warm-up is the first
        self._changed = asyncio.Event()

    async def wait_for_turn(self, ticket: Ticket) -> None:
        """Return when a request may go to the engine: at once, except during trials. `goes` says that it does."""
        while not self._may_go(ticket):
            await self._changed.wait()

    def goes(self, ticket: Ticket) -> None:
        """Note that a request goes to the engine, which it may. If it is one of the suspects, its trial begins."""
        if self._awaiting_trial:
            self._on_trial = self._awaiting_trial.pop()
            asyncio.get_running_loop().call_later(TRIAL_SECONDS, self.clear, ticket)

    def answered(self, ticket: Ticket) -> None:
        """Note that a request has been answered."""
        self._answered += 1
        self.clear(ticket)

    def clear(self, ticket: Ticket) -> None:
        """End a request's trial, if it is on trial: the engine has survived it, or the request is gone."""
        if ticket in self._awaiting_trial:
            self._awaiting_trial.remove(ticket)
        elif self._on_trial is not ticket:
            return  # as it nearly always is
        if self._on_trial is ticket:
            self._on_trial = None
        self._wake()

    def engine_died(self, life: int, unanswered: Sequence[Ticket]) -> Ticket | None:
        """Note a death, and the requests without an answer. Returns the likely cause, if it is known."""
        for ticket in unanswered:
            ticket.deaths.append(life)
        repeated = sorted((ticket for ticket in unanswered if len(ticket.deaths) > 1), key=lambda each: each.number)
        cause = self._on_trial if self._on_trial in unanswered else repeated[0] if len(repeated) == 1 else None
        self._on_trial = None
        if cause is None:
            known = [ticket for ticket in self._awaiting_trial if ticket not in repeated]
            self._awaiting_trial = (known + [ticket for ticket in repeated if not ticket.is_given_up])[-MAX_TRIALS:]
        else:
            cause.is_likely_cause = True
            self._awaiting_trial.clear()
            if self._answered:
                self.pardoned.update(cause.deaths)
            self._answered = 0
        self._wake()
        return cause

    def _may_go(self, ticket: Ticket) -> bool:
        if self._on_trial is not None:
            return False
        return not self._awaiting_trial or self._awaiting_trial[-1] is ticket

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
