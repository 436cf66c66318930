"""Makes handlers of every kind alike: a function or a generator function, async or not, becomes a `JobHandler`.

A synchronous one runs in a thread, so that it holds up neither other jobs nor the end of the worker. A thread cannot be
cancelled: when a job is stopped, its function still runs to its end, and a generator to its next `yield`.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, closing, nullcontext, suppress
from queue import SimpleQueue
from types import AsyncGeneratorType
from typing import Any

from common.errors import type_and_place
from common.figures import minute_lines
from serverless.loop_watch import named_blocks
from serverless.service import Job, JobHandler, Lifespan, Service, read_keys

log = logging.getLogger("worker.handler")

_END = object()


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a generator, async or not: its outputs are streamed."""
    plain = _unwrapped(function)
    return inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain)


def _is_async(function: Callable[..., Any]) -> bool:
    plain = _unwrapped(function)
    return inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain)


def as_job_handler(function: Callable[[Job], Any]) -> JobHandler:
    """A handler that calls this function for each job, and yields its result, or what it yields, in order."""
    plain = _unwrapped(function)
    if inspect.isasyncgenfunction(plain):
        return function if inspect.isasyncgenfunction(function) else _of_async_generator(function)
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

        async with minute_lines(), named_blocks() if _is_async(function) else nullcontext():
            yield Service(as_job_handler(function), ready, failure, read=read_keys, refreshes=refreshes)

    return lifespan


def _of_function(function: Callable[[Job], Any]) -> JobHandler:
    is_coroutine = inspect.iscoroutinefunction(_unwrapped(function))

    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        result = function(job) if is_coroutine else await _in_thread(lambda job: _gathered(function(job)), job)
        if inspect.isawaitable(result):
            result = await result
        yield await _gathered_async(result) if inspect.isasyncgen(result) else _gathered(result)

    return handler


def _gathered(result: Any) -> Any:
    """A generator that a plain function returned, as the list of its outputs, or the first that is an error."""
    if not inspect.isgenerator(result):
        return result
    outputs = []
    with closing(result):
        for output in result:
            if read_keys(output).error is not None:
                return output
            outputs.append(output)
    return outputs


async def _gathered_async(result: AsyncGeneratorType[Any, Any]) -> Any:
    outputs = []
    async with aclosing(result):
        async for output in result:
            if read_keys(output).error is not None:
                return output
            outputs.append(output)
    return outputs


def _of_generator(function: Callable[[Job], Generator[Any, None, None]]) -> JobHandler:
    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        steps = _Steps(function, job)
        try:
            while (output := await steps.next()) is not _END:
                yield output
        finally:
            steps.close()

    return handler


def _of_async_generator(function: Callable[[Job], Any]) -> JobHandler:
    async def handler(job: Job) -> AsyncGenerator[Any, None]:
        given = function(job)
        if inspect.isawaitable(given):
            given = await given
        if not inspect.isasyncgen(given):
            for output in _given_by_a_decorator(given):
                yield output
            return
        async with aclosing(given):
            async for output in given:
                yield output

    return handler


def _given_by_a_decorator(given: Any) -> Iterator[Any]:
    """What a decorator that collects a generator's outputs returns in its place: a list is all of them, else one."""
    if isinstance(given, Iterator):
        return given
    return iter(given if isinstance(given, list | tuple) else [given])


class _Steps:
    """A generator that lives in one thread and one context, from its first step to its last.

    So what it keeps there between its yields is still there: thread-locals, `torch.no_grad()`, a connection to sqlite,
    context variables. A step is made only when its output is asked for.
    """

    def __init__(self, function: Callable[[Job], Generator[Any, None, None]], job: Job) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[asyncio.Future[Any] | None] = SimpleQueue()
        _start_thread(self._live, function, job)

    async def next(self) -> Any:
        """The next output, or `_END`. Raises what the generator raises."""
        step: asyncio.Future[Any] = self._loop.create_future()
        self._asked.put(step)
        return await step

    def close(self) -> None:
        """Close the generator; does not wait for a step that it is in the middle of."""
        self._asked.put(None)

    def _live(self, function: Callable[[Job], Generator[Any, None, None]], job: Job) -> None:
        outputs: Iterator[Any] | None = None

        def step() -> Any:
            nonlocal outputs
            if outputs is None:
                outputs = _given_by_a_decorator(function(job))
            return next(outputs, _END)

        while (asked := self._asked.get()) is not None:
            _settle(asked, step)
        if isinstance(outputs, Generator):
            try:
                outputs.close()
            except BaseException as error:
                log.error("a generator raised %s when it was closed:\n%s", *type_and_place(error))


async def _in_thread(function: Callable[[Job], Any], job: Job) -> Any:
    """Call it in its own thread."""
    outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    _start_thread(_settle, outcome, lambda: function(job))
    return await outcome


def _start_thread(function: Callable[..., None], *arguments: Any) -> None:
    """A daemon, with a copy of this context: a function that hangs must not keep the process from ending."""
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(function, *arguments), name="handler", daemon=True).start()


def _settle(outcome: asyncio.Future[Any], call: Callable[[], Any]) -> None:
    """Call it here, and have the future's own loop learn what came of it."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = call()
    except (StopIteration, GeneratorExit) as exception:  # a future cannot hold the one, nor a generator raise the other
        error = RuntimeError(f"the handler raised {type(exception).__name__}")
    except BaseException as exception:
        error = exception

    def tell() -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    with suppress(RuntimeError):  # the loop has ended in the meantime
        outcome.get_loop().call_soon_threadsafe(tell)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that decides the kind: a partial's function, an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = type(function).__call__
    plain: Callable[..., Any] = inspect.unwrap(function)
    return plain
