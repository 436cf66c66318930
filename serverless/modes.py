"""The loading dock: which mode the program runs in, and how it ends.

worker    jobs from the platform, RunPod or Waverless, through RunPod's SDK
API       the same, with a local RunPod in this process as the platform (api_mode.py)
local     one job, from the command line or from `test_input.json`

`start({"handler": f})` is the face for handlers of any kind, as in RunPod's SDK. The SDK is imported late: that reads
most `RUNPOD_*` variables for good, and costs almost two seconds that local mode need not spend.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import uvloop

import platforms
from command_line import Arguments, parse_arguments
from engine_process import EngineError
from errors import EngineUnavailableError, JobError
from functions import as_job_handler, is_generator
from job_loop import Delivery, Job, JobHandler, JobLoop, Platform, error_of, one_object, the_only_one
from masking import Mask, MaskingFormatter
from platforms import PlatformName
from settings import ConfigurationError, Settings
from tasks import cancel
from web_server import PortInUseError, serving

log = logging.getLogger("worker.serverless")

# 0: told to stop, or a job answered. 1: the engine, the machine or a job failed. 2: wrong settings or command line.
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

# A worker whose engine is given up must be gone within 10 s. Jobs in flight fail by themselves; what has not by then is
# reported by the loop.
FAILURE_TIMEOUT_SECONDS = 2.0

# Hundreds of jobs under way are many objects, none of them garbage; by Python's own thresholds (700, 10, 10) the
# collector looks through them all the time.
GC_THRESHOLDS = (20_000, 20, 20)


@dataclass(frozen=True)
class Service:
    """What answers jobs while a lifespan lasts.

    handler: answers each job, `{"id": …, "input": …}`.
    wait_until_ready: returns while jobs should be taken; raises JobError when they never will be again.
    wait_for_failure: returns the reason once the service breaks for good.
    error_event: an error in the form in which a broken-off stream ends; None where outputs have no such form.
    """

    handler: JobHandler
    wait_until_ready: Callable[[], Coroutine[Any, Any, None]]
    wait_for_failure: Callable[[], Coroutine[Any, Any, str]]
    error_event: Callable[[JobError], str] | None = None


Lifespan = Callable[[], AbstractAsyncContextManager[Service]]
"""Starts what answers jobs; ends it."""


class ManagedHandler(Protocol):
    """A handler with a life of its own, in place of a function: it is told its surroundings, started and ended."""

    def configure(self, environ: Mapping[str, str], mask: Mask, *, can_stream: bool) -> tuple[Settings, Lifespan]:
        """Read the environment; return the settings, and what starts and ends the service under them.

        can_stream: whether the platform takes an output before a job is over. Raises ConfigurationError with every
        problem. The lifespan raises EngineError where the service does not start.
        """


@dataclass(frozen=True)
class Work:
    """All that a mode needs: what answers jobs, how its outputs are delivered, how many at once."""

    lifespan: Lifespan
    delivery: Delivery
    concurrency: Callable[[int], int]
    settings: Settings
    platform: PlatformName


def start(config: Mapping[str, Any]) -> NoReturn:
    """Run a handler in the mode that the command line and the environment ask for; ends the process.

    config, as in RunPod's SDK:
      handler: a function of a job (`{"id", "input"}`), a generator function, either of them asynchronous or not, or a
        ManagedHandler. What it returns is the job's output; what it yields is streamed; `{"error": text}` fails the
        job, and so does whatever it raises, without its words.
      return_aggregate_stream: whether the outputs of a generator are its result too. Default: no, as in the SDK.
      concurrency_modifier: from the number of jobs at once so far to the number from now on; 0 takes none. Default:
        one job at once for a function, MAX_CONCURRENCY for a ManagedHandler. `--rp_api_concurrency` overrides it.

    The exit code is 0, 1 after a failure, or 2 for a wrong command line or setting.
    """
    handler = config.get("handler")
    modifier = config.get("concurrency_modifier")
    if not callable(handler) and not hasattr(handler, "configure"):
        raise TypeError('start() needs {"handler": f}, with f a function of a job')
    if modifier is not None and not callable(modifier):
        raise TypeError("'concurrency_modifier' must be a function of the number of jobs at once so far")
    managed: ManagedHandler = handler if hasattr(handler, "configure") else _Function(handler)

    platform = platforms.detect(os.environ)
    os.environ.update(platforms.translate(os.environ))
    arguments = parse_arguments(sys.argv[1:], os.environ)
    if arguments.log_level:
        os.environ["RUNPOD_LOG_LEVEL"] = arguments.log_level
    if arguments.test_job is not None or arguments.serve_api:
        platform = PlatformName.LOCAL
    mask = Mask.from_environ(os.environ)
    configure_logging(mask)
    try:
        settings, lifespan = managed.configure(os.environ, mask, can_stream=platform is not PlatformName.WAVERLESS)
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("%s", problem)
        sys.exit(EXIT_USAGE)
    _set_log_level(settings.log_level)
    fixed = arguments.api_concurrency or (settings.max_concurrency if managed is handler else 1)
    work = Work(
        lifespan=lifespan,
        delivery=_delivery(
            platform,
            streams=managed is handler or is_generator(handler),
            aggregates=bool(config.get("return_aggregate_stream")) or arguments.test_job is not None,
        ),
        concurrency=(lambda _: fixed) if modifier is None or arguments.api_concurrency else modifier,
        settings=settings,
        platform=platform,
    )
    sys.exit(run(work, arguments))


def validate(raw_input: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Check an input against a schema, as RunPod's SDK does it; its result is the SDK's.

    `{"validated_input": …}`, or `{"errors": [text, …]}`. schema: for each name its `type`, whether it is `required`,
    a `default` and `constraints`, a function of the value.
    """
    os.environ.update(platforms.translate(os.environ))
    import runpod_sdk

    return runpod_sdk.validate(raw_input, schema)


class _Function:
    """A plain handler function as a ManagedHandler: always ready, never failing as a whole."""

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._handler = as_job_handler(function)

    def configure(self, environ: Mapping[str, str], mask: Mask, *, can_stream: bool) -> tuple[Settings, Lifespan]:
        return Settings.from_environ(environ), self._lifespan

    @asynccontextmanager
    async def _lifespan(self) -> AsyncGenerator[Service, None]:
        async def ready() -> None:
            return

        async def failure() -> str:
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never

        yield Service(self._handler, ready, failure)


def _delivery(platform: PlatformName, *, streams: bool, aggregates: bool) -> Delivery:
    if platform is PlatformName.WAVERLESS:
        return Delivery(streamed=False, result=one_object)
    if not streams:
        return Delivery(streamed=False, result=the_only_one)
    return Delivery(streamed=True, result=list if aggregates else lambda _: [])


def configure_logging(mask: Mask) -> None:
    """Log to standard error, secrets masked.

    The HTTP libraries stay at WARNING: below it they log every request and its headers.
    """
    to_standard_error = logging.StreamHandler(sys.stderr)
    to_standard_error.setFormatter(MaskingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", mask))
    logging.basicConfig(handlers=[to_standard_error], level=logging.INFO, force=True)
    for library in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)


def _set_log_level(log_level: str) -> None:
    os.environ["RUNPOD_LOG_LEVEL"] = log_level  # unset, the SDK takes DEBUG and prints every output
    level = {"TRACE": "DEBUG", "WARN": "WARNING", "NOTSET": "CRITICAL"}.get(log_level, log_level)
    logging.getLogger("worker").setLevel(level)


def run(work: Work, arguments: Arguments) -> int:
    """Run the mode that the arguments ask for, to its end. Returns the process's exit code."""
    if arguments.test_job is not None:
        return _run_in_loop(_answer_one(work, arguments.test_job))
    try:
        if arguments.serve_api:
            from api_mode import local_platform  # the web framework's import costs local mode and workers time

            return _run_in_loop(_work(work, local_platform(arguments, work.settings)))
        return _run_worker(work)
    except PortInUseError as error:
        log.error("%s", error)
        return EXIT_FAILED


def _run_in_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end on uvloop, with a collector that looks less often; docs/performance.md has what each brings."""
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()  # what is imported by now stays; the collector need not look at it again
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _answer_one(work: Work, job: Job) -> int:
    """Answer one job; print it on standard output as the platform would report it."""
    outputs: list[Any] = []
    error: str | None = None
    with _stop_on_signals() as stop:
        try:
            async with work.lifespan() as service, aclosing(service.handler(job)) as answer:
                async for output in answer:
                    if (error := error_of(output)) is None:
                        outputs.append(output)
        except EngineError as exception:
            log.error("%s", exception)
            error = EngineUnavailableError(str(exception)).as_json()
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_FAILED
        except Exception as exception:
            log.exception("the handler raised %s", type(exception).__name__)
            error = JobError().as_json()
    report: dict[str, Any] = {"id": job["id"], "status": "FAILED" if error else "COMPLETED"}
    if not error or outputs:
        report["output"] = work.delivery.result(outputs)
    if error:
        report["error"] = error
    return _print_report(report)


def _print_report(report: dict[str, Any]) -> int:
    try:
        text = json.dumps(report, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    except (TypeError, ValueError) as error:
        log.error("the output is no JSON: %s", error)
        return EXIT_FAILED
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "replace"))  # UTF-8, whatever the locale says
    sys.stdout.flush()
    return EXIT_FAILED if "error" in report else EXIT_OK


def _run_worker(work: Work) -> int:
    import runpod_sdk

    log.info(
        "worker %s starts on %s, with RunPod's SDK %s", runpod_sdk.WORKER_ID, work.platform.value, runpod_sdk.VERSION
    )
    if not runpod_sdk.is_machine_fit():
        log.error("a fitness check of this machine failed; see above")
        return EXIT_FAILED
    # The heartbeat runs before the engine does: loading a model takes minutes, and the platform should see us alive.
    runpod_sdk.start_heartbeat()
    return _run_in_loop(_work(work, _deployed_platform(work)))


@asynccontextmanager
async def _deployed_platform(work: Work) -> AsyncGenerator[Platform, None]:
    """What a deployed worker has around its jobs; gives the open connection to the platform."""
    from runpod_sdk import RunPodPlatform, WaverlessPlatform

    async with AsyncExitStack() as stack:
        if work.platform is PlatformName.WAVERLESS:
            from waverless_health import health_app

            port = work.settings.waverless_health_port
            try:
                await stack.enter_async_context(serving(health_app(), "0.0.0.0", port))
            except PortInUseError as error:
                log.warning("no /health for Waverless, jobs are answered all the same: %s", error)
            yield await stack.enter_async_context(WaverlessPlatform.connect())
        else:
            yield await stack.enter_async_context(RunPodPlatform.connect())


async def _work(work: Work, platform: AbstractAsyncContextManager[Platform]) -> int:
    """Answer the platform's jobs until told to stop, or until the service breaks. Returns the exit code."""
    with _stop_on_signals() as stop:
        try:
            async with platform as connection, work.lifespan() as service:
                stop.gracefully = True
                jobs = JobLoop(
                    connection,
                    service.handler,
                    concurrency=work.concurrency,
                    wait_until_ready=service.wait_until_ready,
                    error_event=service.error_event,
                    delivery=work.delivery,
                )
                return await _take_jobs(service, jobs, work.settings, stop)
        except EngineError as error:
            log.error("%s", error)
            return EXIT_FAILED
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_OK


async def _take_jobs(service: Service, jobs: JobLoop, settings: Settings, stop: _Stop) -> int:
    failure = asyncio.create_task(service.wait_for_failure())
    told = asyncio.create_task(stop.requested.wait())
    taking = jobs.start()
    log.info("taking jobs")
    await asyncio.wait({failure, told, taking}, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        await cancel(failure)
        log.info("told to stop: finishing %d jobs", jobs.in_flight)
        await jobs.stop(timeout_seconds=settings.shutdown_timeout_seconds, hurry=stop.hurried)
        return EXIT_OK
    reason = failure.result() if failure.done() else "the job loop broke"
    log.error("%s; this worker ends, so that the platform replaces it", reason)
    await jobs.stop(timeout_seconds=FAILURE_TIMEOUT_SECONDS, reason=reason)
    return EXIT_FAILED


class _Stop:
    """A request to stop. Before `gracefully` is set it cancels the running task; a second one asks to hurry."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self.gracefully = False
        self._task = asyncio.current_task()

    def request(self) -> None:
        if self.requested.is_set():
            self.hurried.set()
        self.requested.set()
        if not self.gracefully and self._task is not None:
            self._task.cancel()


@contextmanager
def _stop_on_signals() -> Generator[_Stop, None, None]:
    """SIGTERM and SIGINT request a stop; the handlers from before are put back at the end."""
    loop, stop = asyncio.get_running_loop(), _Stop()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in signals]
    for number in signals:
        loop.add_signal_handler(number, stop.request)
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
