"""The engine's life: it is started, watched, restarted when it dies, and given up when that does not help.

    STARTING ──ready──▶ READY ──death──▶ RESTARTING ──ready──▶ READY
        └──error──▶ (EngineError)            └──error, or too often──▶ FAILED
    any of them ──left──▶ STOPPED

If the task that keeps the engine running ends for any reason, the engine is given up: FAILED, with that reason.

This module does not handle the requests that an engine died under: it tells them so (`Exchange.engine_is_lost`), and
lets them wait for the next engine (`Supervisor.exchange`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from common import job_record, meters
from common.errors import UnavailableError, type_and_place
from common.tasks import cancel, reason_of_end
from sglang_engine.errors import EngineError
from sglang_engine.process import Ending, Engine
from sglang_engine.settings import EngineSettings
from sglang_engine.suspects import Suspects, Ticket

log = logging.getLogger("worker.engine")

# The pauses before the first, second, third … restart within the window: short at first, so that a single crash costs
# little, and growing, since an engine that crashes again at once will not be cured by haste.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0

# A broken connection is noticed before the end of its process, by as long as the kernel takes to end the process.
LOSS_NOTICE_SECONDS = 5.0


class State(StrEnum):
    """What the engine is doing."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Exchange:
    """One request to the engine, from its first byte to its last: which engine has it, and when that last sent data."""

    def __init__(self, supervisor: Supervisor, ticket: Ticket) -> None:
        self.ticket = ticket
        self.has_answer = False
        """Whether the engine has sent a part of its answer."""
        self._supervisor = supervisor
        self._life = supervisor.lives
        self.began = time.monotonic()

    def progressed(self) -> None:
        """Note that the engine has just sent something."""
        self._supervisor.last_progress = time.monotonic()

    def answered(self) -> None:
        """Note that the engine has sent a part of its answer."""
        if not self.has_answer:
            self.has_answer = True
            self._supervisor.suspects.answered(self.ticket)

    @property
    def engine_is_lost(self) -> bool:
        """Whether this request's engine is known to have died."""
        return self._supervisor.lives > self._life

    async def engine_gets_lost(self) -> bool:
        """Whether this request's engine has died. Called when its connection broke, which may be noticed first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOSS_NOTICE_SECONDS):
                await self._supervisor.wait_for_loss(self._life)
        return self.engine_is_lost

    async def reason_of_loss(self) -> str:
        """Why this request's engine died, once that is known."""
        return await self._supervisor.reason_of_loss(self._life)

    async def engine_is_wedged(self) -> bool:
        """Whether the engine, silent for REQUEST_TIMEOUT_SECONDS, is alive but wedged; if so, it is killed."""
        return await self._supervisor.kill_if_wedged(self._life)


class Supervisor:
    """Keeps an engine running. An async context manager: entering starts it, leaving ends it and all its children.

    Entering raises EngineError if the first start fails. After that, the engine is restarted whenever it ends, up to
    `max_restarts` times within `restart_window_seconds`; after that, or if a restart fails, it is given up.
    """

    def __init__(self, engine: Engine, settings: EngineSettings) -> None:
        self.state = State.STARTING
        self.lives = 0
        """How many engines have died so far, which is also the number of the present one, counted from 0."""
        self.last_progress = time.monotonic()
        self.suspects = Suspects()
        self.requests_ended = 0
        """How many requests have ended so far, however they did."""
        self._engine = engine
        self._settings = settings
        self._exchanges: set[Exchange] = set()
        self._requested = asyncio.Event()  # set while there are any
        self._waiting = 0
        self._restarts: dict[int, float] = {}  # life -> when it was followed by a restart
        self._deaths: list[str] = []  # life -> why that engine died
        self._failure = ""
        self._changed = asyncio.Event()
        self._hang: asyncio.Future[str] | None = (
            None  # which part does not answer, once the engine is found to be wedged
        )
        self._probe: asyncio.Task[bool] | None = None
        self._supervising: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._set(State.STARTING)
        try:
            await self._start_engine()
        except BaseException as error:
            self._failure = str(error) if isinstance(error, EngineError) else ""
            self._set(State.FAILED if isinstance(error, EngineError) else State.STOPPED)
            await self._engine.stop()
            raise
        self._set(State.READY)
        self._supervising = asyncio.create_task(self._supervise())
        self._supervising.add_done_callback(self._supervision_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.state is not State.FAILED:
            self._set(State.STOPPED)
        try:
            await cancel(self._supervising, self._probe)
        finally:
            await self._engine.stop()

    @asynccontextmanager
    async def exchange(self, ticket: Ticket) -> AsyncGenerator[Exchange, None]:
        """One request to the engine: waits until the engine is ready, and counts as in flight within this context.

        Raises UnavailableError if the engine is given up, or too many requests are already waiting for it.
        """
        with job_record.current().waiting():
            await self._wait_for_turn(ticket)
        exchange = Exchange(self, ticket)
        self._exchanges.add(exchange)
        self._requested.set()
        try:
            yield exchange
        finally:
            self._exchanges.discard(exchange)
            self.requests_ended += 1
            if not self._exchanges:
                self._requested.clear()

    @property
    def in_flight(self) -> int:
        """How many requests the engine has from us."""
        return len(self._exchanges)

    def begun_before(self, when: float) -> int:
        """How many of those in flight were sent before that time, in `time.monotonic()` seconds."""
        return sum(exchange.began < when for exchange in self._exchanges)

    async def wait_for_request(self) -> None:
        """Return while the engine has a request."""
        await self._requested.wait()

    def engine_pids(self) -> list[int]:
        """The engine's processes, the first of them its leader; empty while it is down."""
        return self._engine.pids()

    @property
    def is_ready(self) -> bool:
        """Whether requests are sent at once."""
        return self.state is State.READY

    @property
    def failure(self) -> str:
        """Why the engine has been given up; empty unless it has."""
        return self._failure

    async def wait_until_ready(self) -> None:
        """Return once the engine is ready.

        Raises UnavailableError with the reason if it is given up or stopped.
        """
        while self.state in (State.STARTING, State.RESTARTING):
            await self._changed.wait()
        if self.state is not State.READY:
            raise UnavailableError(self._failure or "the engine has been stopped")

    async def wait_for_failure(self) -> str:
        """Return the reason once the engine is given up."""
        while self.state is not State.FAILED:
            await self._changed.wait()
        return self._failure

    async def wait_for_loss(self, life: int) -> None:
        """Return once the engine of this life has died, or will not be used any more."""
        while self.lives <= life and self.state is not State.STOPPED:
            await self._changed.wait()

    async def reason_of_loss(self, life: int) -> str:
        """Why the engine of this life died, once that is known."""
        while len(self._deaths) <= life and self.state is not State.STOPPED:
            await self._changed.wait()
        return self._deaths[life] if len(self._deaths) > life else "the engine has been stopped"

    async def kill_if_wedged(self, life: int) -> bool:
        """Kill the engine if it is wedged: alive, but silent on every request and on a probe.

        Returns whether the engine of this life is lost. Requests that time out together share one probe.
        """
        if self._silence_seconds() < 0.95 * self._settings.request_timeout_seconds:  # timers are not exact
            return self.lives > life
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probe_silent_engine())
        if await asyncio.shield(self._probe):
            await self.wait_for_loss(life)
        return self.lives > life

    def _silence_seconds(self) -> float:
        """How long it has been since anything came on any request in flight."""
        oldest = min((exchange.began for exchange in self._exchanges), default=time.monotonic())
        return time.monotonic() - max(oldest, self.last_progress)

    async def _probe_silent_engine(self) -> bool:
        """Whether the engine is wedged; if so, sets `_hang`, which ends this life."""
        began, hang = time.monotonic(), self._hang
        if self.state is not State.READY or (fault := await self._engine.find_hang()) is None:
            return False
        if hang is None or hang.done() or self.last_progress >= began:
            return False  # it has ended or sent something in the meantime
        hang.set_result(fault)
        return True

    async def _wait_for_turn(self, ticket: Ticket) -> None:
        while True:
            await self._wait_for_engine()
            await self.suspects.wait_for_turn(ticket)
            if self.state is State.READY:
                self.suspects.goes(ticket)
                return

    async def _wait_for_engine(self) -> None:
        if self.state is State.READY:
            return
        is_coming = self.state in (State.STARTING, State.RESTARTING)
        if is_coming and self._waiting >= self._settings.max_waiting_jobs:
            raise UnavailableError(
                f"the engine is {self.state}, and {self._waiting} jobs are already waiting for it (MAX_WAITING_JOBS)"
            )
        self._waiting += 1
        try:
            await self.wait_until_ready()
        finally:
            self._waiting -= 1

    async def _start_engine(self) -> None:
        await self._engine.start()
        await self._engine.wait_until_ready(self._settings.startup_timeout_seconds)

    async def _supervise(self) -> None:
        while self.state is State.READY:
            ending = await self._wait_for_end()
            self.lives += 1
            self._look_for_cause(self.lives - 1)
            self._set(State.RESTARTING)
            reason, cause = await self._reason_of(ending)
            log.error("%s", reason)
            self._deaths.append(reason)
            self._set(State.RESTARTING)  # again, now that the reason is known
            await self._engine.kill()
            try:
                await self._restart(reason, cause)
            except EngineError as error:
                await self._engine.kill()
                self._fail(str(error))
            except Exception as error:
                log.error("restarting the engine raised %s:\n%s", *type_and_place(error))
                await self._engine.kill()
                self._fail(f"{reason}; starting it again failed with {type(error).__name__}")

    def _look_for_cause(self, life: int) -> None:
        unanswered = sorted((e for e in self._exchanges if not e.has_answer), key=lambda exchange: exchange.began)
        cause = self.suspects.engine_died(life, [exchange.ticket for exchange in unanswered])
        if cause is not None:
            log.error("%s: %d engines have died under it; it fails as the likely cause", cause.label, len(cause.deaths))

    def _supervision_ended(self, supervising: asyncio.Task[None]) -> None:
        """Give up the engine if the supervising task ends: without it, no death would ever be noticed."""
        if self.state in (State.READY, State.RESTARTING):
            self._fail(reason_of_end(supervising, "watching over the engine"))

    async def _wait_for_end(self) -> Ending | str:
        """The engine's end; or, if it is wedged, which part does not answer."""
        self._hang = asyncio.get_running_loop().create_future()
        ending = asyncio.create_task(self._engine.wait_for_end())
        waited: list[asyncio.Future[Any]] = [ending, self._hang]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return ending.result() if ending.done() else self._hang.result()
        finally:
            self._hang.cancel()
            await cancel(ending)

    async def _reason_of(self, ending: Ending | str) -> tuple[str, str]:
        """Why the engine ended: a sentence for the log and the jobs, and a word for what is counted."""
        if isinstance(ending, Ending):
            why = await self._engine.diagnose(ending)
            return why.text, why.check
        silence = f"{self._settings.request_timeout_seconds:g} s (REQUEST_TIMEOUT_SECONDS)"
        unknown = "cause unknown; if it happens again, replace the GPU"
        return f"the engine sent nothing for {silence} and {ending} ({unknown})", "hang"

    async def _restart(self, reason: str, cause: str) -> None:
        """Restart the engine. Raises EngineError if it does not become ready, or has been restarted too often."""
        window, most = self._settings.restart_window_seconds, self._settings.max_restarts
        now, life = time.monotonic(), self.lives - 1
        self._restarts = {
            of: when for of, when in self._restarts.items() if now - when <= window and of not in self.suspects.pardoned
        }
        done = len(self._restarts)
        if done >= most and life not in self.suspects.pardoned:
            raise EngineError(
                f"{reason}; it is not started again, after {done} restarts within {window:g} s (ENGINE_MAX_RESTARTS)"
            )
        self._restarts[life] = now
        meters.ENGINE_RESTARTS.add(cause)
        pause = min(FIRST_PAUSE_SECONDS * 2**done, LONGEST_PAUSE_SECONDS)
        log.warning("restart %d of at most %d within %g s, in %g s", done + 1, most, window, pause)
        await asyncio.sleep(pause)
        try:
            await self._start_engine()
        except EngineError as error:
            raise EngineError(f"{reason}; starting it again failed: {error}") from None
        self._set(State.READY)

    def _fail(self, reason: str) -> None:
        """Give up the engine; the requests that it has learn the reason."""
        if self.state is State.READY:
            self.lives += 1
        self._deaths += [reason] * (self.lives - len(self._deaths))
        self._failure = reason
        self._set(State.FAILED)

    def _set(self, state: State) -> None:
        if state is not self.state or not meters.ENGINE_STATE.values:
            meters.set_one(meters.ENGINE_STATE, state, State)
            meters.ENGINE_SINCE.set(time.time())
        self.state = state
        self._changed.set()
        self._changed = asyncio.Event()
