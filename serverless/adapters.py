"""Makes handlers of every kind alike: a function or a generator function, async or not, becomes a `JobHandler`.

A synchronous one runs in a thread, so that it holds up neither other jobs nor the end of the worker. A thread cannot be
cancelled: when a job is stopped, its function still runs to its end, and a generator to its next `yield`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

from serverless.service import Job, JobHandler, Lifespan, Service, read_keys

_END = object()


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a generator, async or not: its outputs are streamed."""
    plain = _unwrapped(function)
    return inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)


def as_job_handler(function: Callable[[Job], Any]) -> JobHandler:
    """A handler that calls this function for each job, and yields its result, or what it yields, in order."""
    plain = _unwrapped(function)
    if inspect.isasyncgenfunction(plain):
        return function
    if inspect.isgeneratorfunction(plain):
        return _of_generator(function)
    return _of_function(function)


def service_of(function: Callable[[Job], Any], *, refreshes: bool = False) -> Lifespan:
    """A service that is just this function: always ready, never failing as a whole.

    refreshes: whether the worker shall end after every job.
    """

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Service, None]:
        async def ready() -> None:
            return

        async def failure() -> str:
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never

        yield Service(as_job_handler(function), ready, failure, read=read_keys, refreshes=refreshes)

    return lifespan


def _of_function(function: Callable[[Job], Any]) -> JobHandler:
    is_coroutine = inspect.iscoroutinefunction(_unwrapped(function))

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        result = function(job) if is_coroutine else await _in_thread(function, job)
        yield await result if inspect.isawaitable(result) else result

    return handler


def _of_generator(function: Callable[[Job], Generator[Any, None, None]]) -> JobHandler:
    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        outputs = function(job)
        stepping: asyncio.Future[Any] | None = None
        try:
            while True:
                stepping = asyncio.ensure_future(_in_thread(next, outputs, _END))
                output = await asyncio.shield(stepping)
                if output is _END:
                    return
                yield output
        finally:
            if stepping is not None and not stepping.done():  # closing it while it runs is an error
                stepping.add_done_callback(lambda step: _close(step, outputs))
            else:
                outputs.close()

    return handler


def _close(step: asyncio.Future[Any], outputs: Generator[Any, None, None]) -> None:
    step.exception()  # retrieved and dropped: nobody is left to report it to
    outputs.close()


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in its own thread. A daemon: a function that hangs must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    def call() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function, *arguments)
        except StopIteration:  # a future cannot hold one
            error = RuntimeError("the handler raised StopIteration")
        except BaseException as exception:
            error = exception
        with suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(settle, result, error)

    context = contextvars.copy_context()
    threading.Thread(target=call, name="handler", daemon=True).start()
    return await outcome


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that decides the kind: a partial's function, an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    plain: Callable[..., Any] = inspect.unwrap(function)
    return plain
