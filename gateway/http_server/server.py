"""The HTTP server's life: it listens from the first moment, answers while the engine runs, and drains at the end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus

from starlette.middleware.cors import CORSMiddleware

from common.addresses import url_of
from common.early_health import EarlyHealth
from common.errors import JobError, StartError, UnavailableError
from common.signals import Stop, stop_on_signals
from common.tasks import cancel, reason_of_end
from common.web_server import WebServerError, listening, serving_on
from gateway.error_events import error_payload
from gateway.http_server.app import App, Route, Scope, Send
from gateway.http_server.bodies import Reader, Receive
from gateway.http_server.refusals import refuse
from gateway.http_server.settings import HttpSettings
from sglang_engine.supervisor import Supervisor

log = logging.getLogger("worker.http")

EXIT_OK, EXIT_FAILED = 0, 1

STOPPING = "the worker is stopping; send this again to another worker, or a little later"

# Once the engine has been given up, its requests fail by themselves; those that have not by then are broken off.
FAILURE_TIMEOUT_SECONDS = 2.0
# How long the reason is told after that to whoever asks: health checks come every few seconds at most.
LAST_WORDS_SECONDS = 1.0
# How long requests that are broken off have to send their last words.
BREAK_OFF_SECONDS = 2.0

CANNOT_START = "this worker cannot start"

Report = Callable[[StartError], Awaitable[None]]
"""Tells the platform that this worker cannot start."""

Door = tuple[socket.socket, Sequence[socket.socket]]
"""A listening socket, and the connections that have been accepted on it already."""


async def serve(
    app: App, supervisor: Supervisor, settings: HttpSettings, early: EarlyHealth | None, report: Report
) -> int:
    """Serve until told to stop, or until the engine is given up. Returns the exit code.

    early: what has answered the first health checks; the server takes over from it. report: tells the platform of a
    start that failed.
    """
    doors = [_with_cors(app, settings.cors_origins), _health_alone(app, settings.health_paths)]
    with stop_on_signals() as stop:
        try:
            async with _open_doors(doors, settings, early):
                return await _serve(app, supervisor, settings, stop, report)
        except WebServerError as error:
            log.error("%s", error)
            return EXIT_FAILED
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_OK


async def serve_failure(
    error: StartError, settings: HttpSettings, early: EarlyHealth | None, report: Report, *, exit_code: int
) -> int:
    """Answer every request with why nothing can be served, for FAILED_START_SECONDS. Returns the exit code."""
    failure = UnavailableError(f"{CANNOT_START}: {error}")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await Reader.forget(receive)
        await refuse(send, failure, scope["path"])

    try:
        async with _open_doors([answer, answer], settings, early):
            await report(error)
            await _tell(error, settings)
    except WebServerError as problem:
        log.error("%s", problem)
    return exit_code


@asynccontextmanager
async def _open_doors(
    routes: Sequence[Route], settings: HttpSettings, early: EarlyHealth | None
) -> AsyncGenerator[None, None]:
    """Answer on the addresses of the settings: what the first route does on the first, the second on the second."""
    doors: dict[tuple[str, int], Door] = dict(early.hand_over()) if early is not None else {}
    async with AsyncExitStack() as stack:
        for listener, _ in doors.values():
            stack.enter_context(listener)
        for number, address in enumerate(settings.addresses):
            if address in doors:
                listener, accepted = doors[address]
            else:
                setting = "PORT" if number == 0 else "PORT_HEALTH"
                listener, accepted = stack.enter_context(listening(*address, setting)), ()
            await stack.enter_async_context(
                serving_on(listener, routes[number], accepted=accepted, error_payload=error_payload)
            )
            port = listener.getsockname()[1]
            log.info("%s on %s", "serving HTTP" if number == 0 else "health checks", url_of(address[0], port))
        yield


def _with_cors(app: Route, origins: frozenset[str]) -> Route:
    """The app, open to the web pages of these origins."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=sorted(origins), allow_methods=["*"], allow_headers=["*"], expose_headers=["X-Request-Id"]
    )


def _health_alone(app: App, paths: frozenset[str]) -> Route:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["path"] in paths:
            await app.health(scope, receive, send)
            return
        error = JobError("there are only health checks at this port", code=HTTPStatus.NOT_FOUND)
        await refuse(send, error, "")

    return serve


async def _serve(app: App, supervisor: Supervisor, settings: HttpSettings, stop: Stop, report: Report) -> int:
    try:
        async with supervisor, app.turns.counted():
            stop.gracefully = True
            log.info("the engine is warm: requests are answered")
            return await _until_end(app, supervisor, settings, stop)
    except StartError as error:
        log.error("%s; this worker ends, so that the platform replaces it", error)
        app.fail(UnavailableError(f"{CANNOT_START}: {error}"))
        await report(error)
        await _tell(error, settings)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        return EXIT_FAILED
    finally:
        app.close(UnavailableError(STOPPING))


async def _tell(error: StartError, settings: HttpSettings) -> None:
    """Leave the doors open for a while, where no other worker could start either."""
    if error.is_lasting and (seconds := settings.failed_start_seconds):
        log.error("every worker would fail in this way: the reason is told on every path for %g s", seconds)
        await asyncio.sleep(seconds)


async def _until_end(app: App, supervisor: Supervisor, settings: HttpSettings, stop: Stop) -> int:
    told = asyncio.create_task(stop.requested.wait())
    failure = asyncio.create_task(supervisor.wait_for_failure())
    try:
        await asyncio.wait({told, failure}, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            await _drain(app, settings, stop)
            return EXIT_OK
        reason = failure.result() if not failure.exception() else reason_of_end(failure, "watching over the engine")
    finally:
        await cancel(told, failure)
    log.error("%s; this worker ends, so that the platform replaces it", reason)
    app.close(UnavailableError(reason))
    await _until_idle(app, FAILURE_TIMEOUT_SECONDS)
    await app.break_off(UnavailableError(reason), timeout_seconds=BREAK_OFF_SECONDS)
    await asyncio.sleep(LAST_WORDS_SECONDS)
    return EXIT_FAILED


async def _drain(app: App, settings: HttpSettings, stop: Stop) -> None:
    """Finish what is in flight within SHUTDOWN_TIMEOUT_SECONDS, or until a second signal; break off the rest."""
    app.close(UnavailableError(STOPPING))
    log.info("told to stop: finishing %d requests", app.in_flight)
    await _until_idle(app, settings.shutdown_timeout_seconds, hurry=stop.hurried)
    if left := app.in_flight:
        log.warning("%d requests are broken off: the worker is stopping", left)
        await app.break_off(
            UnavailableError(
                "the worker is stopping, and the request had not finished in time (SHUTDOWN_TIMEOUT_SECONDS)"
            ),
            timeout_seconds=BREAK_OFF_SECONDS,
        )


async def _until_idle(app: App, timeout_seconds: float, *, hurry: asyncio.Event | None = None) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (app.idle, hurry) if event is not None]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(*waits)
