"""The loading dock: which mode the program runs in, and the job loop between the platform and the handler.

Two modes so far: worker (jobs from the platform, through RunPod's SDK) and local (one job from the command line or from
`test_input.json`). This is the only file that imports `runpod`, and it does so late: importing reads most `RUNPOD_*`
variables for good, and costs almost two seconds that local mode need not spend.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import EngineError
from errors import EngineUnavailableError, JobError
from processes import die_with_parent
from settings import Settings

log = logging.getLogger("worker.serverless")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

TEST_INPUT_FILE = "test_input.json"

# How the SDK polls (runpod 1.12.0, rp_scale.py): a long poll is given up after 90 s, "too many requests" costs 5 s.
LONG_POLL_SECONDS = 90.0
TOO_MANY_REQUESTS_PAUSE_SECONDS = 5.0
ERROR_PAUSE_SECONDS = 1.0
# A platform without long polls (Waverless) answers "nothing" at once; such a poll is repeated after a pause.
EMPTY_POLL_PAUSE_SECONDS = 0.2
# When the worker is told to stop, a poll in flight may still bring jobs: it is waited for this long.
LAST_POLL_SECONDS = 1.5

Job = dict[str, Any]
JobHandler = Callable[[Job], AsyncGenerator[Any, None]]
"""An async generator function of a job. It yields outputs; `{"error": text}` is the last one of a failed job."""


@dataclass(frozen=True)
class Service:
    """What takes jobs while a lifespan lasts.

    handler: answers each job, `{"id": …, "input": …}`.
    wait_for_failure: returns the reason once the service breaks for good.
    """

    handler: JobHandler
    wait_for_failure: Callable[[], Coroutine[Any, Any, str]]


Lifespan = Callable[[], AbstractAsyncContextManager[Service]]


@dataclass(frozen=True)
class Arguments:
    """The command line. `test_job` is the job of local mode, None where the environment asks for a worker."""

    test_job: Job | None


def parse_arguments(argv: list[str]) -> Arguments:
    """Read the command line; where it names no job and no platform does, `test_input.json` holds the job.

    Exits with code 2 and one line for an unknown flag, for bad JSON, or where there is no job at all.
    """
    parser = argparse.ArgumentParser(
        prog="handler.py",
        description="A serverless worker that serves GLM-4.7-Flash through SGLang.",
        epilog=f"Without RUNPOD_WEBHOOK_GET_JOB and --test_input, the job is read from {TEST_INPUT_FILE}.",
        allow_abbrev=False,
    )
    parser.add_argument("--test_input", metavar="JSON", help='answer this one job, {"input": …}, and exit')
    given = parser.parse_args(argv)
    if given.test_input is not None:
        return Arguments(_test_job(parser, "--test_input", given.test_input))
    if os.environ.get("RUNPOD_WEBHOOK_GET_JOB"):
        return Arguments(test_job=None)
    try:
        text = Path(TEST_INPUT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        parser.error(f"no job: give one with --test_input or in {TEST_INPUT_FILE}, or set RUNPOD_WEBHOOK_GET_JOB")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{TEST_INPUT_FILE} cannot be read: {type(error).__name__}")
    return Arguments(_test_job(parser, TEST_INPUT_FILE, text))


def _test_job(parser: argparse.ArgumentParser, source: str, text: str) -> Job:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        parser.error(f"{source} is not valid JSON: {error}")
    if not isinstance(job, dict) or "input" not in job:
        parser.error(f'{source} must be an object with an "input", as in {{"input": {{"messages": […]}}}}')
    return {"id": "local_test", **job}


def configure_logging() -> None:
    """Log to standard error.

    The HTTP libraries stay at WARNING: below it they log every request and its headers.
    """
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.INFO, force=True
    )
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)


def run(lifespan: Lifespan, settings: Settings, arguments: Arguments) -> int:
    """Run the mode that the arguments ask for, to its end. Returns the process's exit code."""
    level = {"TRACE": "DEBUG", "WARN": "WARNING", "NOTSET": "CRITICAL"}.get(settings.log_level, settings.log_level)
    logging.getLogger("worker").setLevel(level)
    if arguments.test_job is not None:
        return asyncio.run(_run_local(lifespan, arguments.test_job))
    return _run_worker(lifespan, settings)


async def _run_local(lifespan: Lifespan, job: Job) -> int:
    """Answer one job; print it on standard output as the platform would report it."""
    outputs: list[Any] = []
    error: str | None = None
    with _stop_on_signals() as stop:
        try:
            async with lifespan() as service, aclosing(service.handler(job)) as answer:
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
    report = {"id": job["id"], "status": "FAILED" if error else "COMPLETED", "output": outputs}
    if error:
        report["error"] = error
    text = json.dumps(report, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "replace"))  # UTF-8, whatever the locale says
    sys.stdout.flush()
    return EXIT_FAILED if error else EXIT_OK


def error_of(output: Any) -> str | None:
    """The error text where an output is a handler's report of failure, else None."""
    if isinstance(output, dict) and output.get("error"):
        return str(output["error"])
    return None


def _run_worker(lifespan: Lifespan, settings: Settings) -> int:
    from runpod.serverless.modules.worker_state import WORKER_ID, JobsProgress, PingJobMirror
    from runpod.version import __version__ as sdk_version

    log.info("worker %s starts, with RunPod's SDK %s", WORKER_ID, sdk_version)
    if (code := _check_fitness()) != 0:
        log.error("a fitness check of this machine failed; see above")
        return code
    # The heartbeat runs before the engine does: loading a model takes minutes, and the platform should see us alive.
    mirror = PingJobMirror()
    JobsProgress().set_mirror(mirror)
    if os.environ.get("RUNPOD_WEBHOOK_PING"):
        # The SDK's own start_ping would let the heart of a killed worker beat on.
        multiprocessing.Process(target=_beat, args=(mirror,), name="heartbeat", daemon=True).start()
    return asyncio.run(_work(lifespan, settings))


def _beat(mirror: Any) -> None:
    from runpod.serverless.modules.rp_ping import Heartbeat

    die_with_parent()
    Heartbeat.process_loop(mirror)


def _check_fitness() -> int:
    """Run the SDK's checks of memory, disk, network and GPU; returns an exit code, 0 for a fit machine.

    They run before the engine takes the GPU, since they want to find it free, and in a process of their own, since
    they load torch and open the GPU, and end the process that they run in.
    """
    process = multiprocessing.Process(target=_run_fitness_checks, name="fitness-checks")
    process.start()
    process.join()
    return EXIT_OK if process.exitcode == 0 else EXIT_FAILED


def _run_fitness_checks() -> None:
    from runpod.serverless.modules.rp_fitness import run_fitness_checks

    asyncio.run(run_fitness_checks())


async def _work(lifespan: Lifespan, settings: Settings) -> int:
    from runpod.http_client import AsyncClientSession

    with _stop_on_signals() as stop:
        try:
            async with lifespan() as service, AsyncClientSession() as session:
                stop.gracefully = True
                jobs = JobLoop(service.handler, session, capacity=settings.max_concurrency)
                failure = asyncio.create_task(service.wait_for_failure())
                told = asyncio.create_task(stop.requested.wait())
                taking = jobs.start()
                log.info("taking jobs, up to %d at once", settings.max_concurrency)
                await asyncio.wait({failure, told, taking}, return_when=asyncio.FIRST_COMPLETED)
                if told.done():
                    log.info("told to stop: finishing %d jobs", jobs.in_flight)
                    await jobs.stop(timeout_seconds=settings.shutdown_timeout_seconds)
                    return EXIT_OK
                # Jobs in flight lose their connection to the engine at once, and are reported failed.
                reason = failure.result() if failure.done() else "the job loop broke"
                log.error("%s; this worker ends, so that the platform replaces it", reason)
                await jobs.stop(timeout_seconds=LAST_POLL_SECONDS)
                return EXIT_FAILED
        except EngineError as exception:
            log.error("%s", exception)
            return EXIT_FAILED
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_OK


class JobLoop:
    """Takes jobs while slots are free, runs each in a task of its own, and posts what the handler yields.

    Built on the SDK's own take, stop and post functions and its set of jobs in progress; only the scheduling between
    them is ours (the SDK's starts jobs on a 100 ms poll, sleeps a second when all slots are taken, and may drop a job
    that arrives while it stops).
    """

    def __init__(self, handler: JobHandler, session: Any, *, capacity: int) -> None:
        from runpod.serverless.modules.worker_state import JobsProgress

        self._handler = handler
        self._session = session  # the SDK's aiohttp session, with its credentials
        self._capacity = capacity
        self._progress = JobsProgress()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._slot_free = asyncio.Event()
        self._stopping = asyncio.Event()
        self._abandoned: JobError | None = None
        self._taking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """The number of jobs taken and not yet answered."""
        return len(self._jobs)

    def start(self) -> asyncio.Task[None]:
        """Begin to take jobs, and to listen for the platform's stop signals. The task returned ends with the taking."""
        self._taking = asyncio.create_task(self._take_jobs())
        self._watching = asyncio.create_task(self._watch_stop_signals())
        return self._taking

    async def stop(self, timeout_seconds: float) -> None:
        """Take no more jobs; let those in flight finish, and report as failed what has not by then."""
        self._stopping.set()
        self._slot_free.set()
        if self._taking is not None:
            await asyncio.wait({self._taking}, timeout=LAST_POLL_SECONDS)
            self._taking.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs.values(), timeout=timeout_seconds)
        self._abandoned = EngineUnavailableError("the worker stopped before this job was finished")
        for task in self._jobs.values():
            task.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs.values(), timeout=LAST_POLL_SECONDS)
        if self._watching is not None:
            self._watching.cancel()

    async def _take_jobs(self) -> None:
        from runpod.serverless.modules.rp_job import get_job

        while not self._stopping.is_set():
            free = self._capacity - len(self._jobs)
            if free <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            poll = _Poll("take jobs")
            with poll:
                for job in await asyncio.wait_for(get_job(self._session, free), LONG_POLL_SECONDS) or ():
                    poll.found = True
                    self._take(job)
            await self._pause(poll.pause_seconds)

    def _take(self, job: Any) -> None:
        job_id = job.get("id") if isinstance(job, dict) else None
        if not isinstance(job_id, str) or not job_id:
            log.error("the platform sent a job without an id; there is nobody to answer")
            return
        if job_id in self._jobs:
            log.warning("job %s: sent again while it is being answered", job_id)
            return
        self._progress.add(job_id)
        task = asyncio.create_task(self._run(job))
        self._jobs[job_id] = task
        task.add_done_callback(lambda _: self._finished(job_id))

    def _finished(self, job_id: str) -> None:
        del self._jobs[job_id]
        self._progress.remove(job_id)
        self._slot_free.set()

    async def _run(self, job: Job) -> None:
        from runpod.serverless.modules.rp_http import send_result, stream_result

        outputs: list[Any] = []
        result: dict[str, Any] = {"output": outputs}
        try:
            async with aclosing(self._handler(job)) as answer:
                async for output in answer:
                    if (error := error_of(output)) is not None:
                        result = {"error": error}
                        break
                    outputs.append(output)
                    await stream_result(self._session, {"output": output}, job)
        except asyncio.CancelledError:
            if self._abandoned is None:
                log.info("job %s: stopped by the platform", job["id"])
                raise
            result = {"error": self._abandoned.as_json()}
        except Exception as exception:
            log.error("job %s: the handler raised %s", job["id"], type(exception).__name__)
            result = {"error": JobError().as_json()}
        await send_result(self._session, result, job, is_stream=True)

    async def _watch_stop_signals(self) -> None:
        from runpod.serverless.modules.rp_job import _job_stop_url, get_stop_signals

        if _job_stop_url() is None:
            log.warning("this platform has no stop channel: cancelled jobs run to their end")
            return
        while True:
            poll = _Poll("listen for stop signals")
            with poll:
                for job_id in await asyncio.wait_for(get_stop_signals(self._session), LONG_POLL_SECONDS):
                    poll.found = True
                    if task := self._jobs.get(job_id):
                        task.cancel()
            await asyncio.sleep(poll.pause_seconds)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when the loop is told to stop."""
        if seconds:
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                return


@dataclass
class _Poll:
    """One poll of the platform: swallows what may go wrong in it, and knows how long to wait before the next."""

    what: str
    found: bool = False
    pause_seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        from runpod.http_client import TooManyRequests

        if error is None:
            answered_at_once = time.monotonic() - self._began < ERROR_PAUSE_SECONDS
            self.pause_seconds = EMPTY_POLL_PAUSE_SECONDS if answered_at_once and not self.found else 0.0
        elif isinstance(error, TooManyRequests):
            self.pause_seconds = TOO_MANY_REQUESTS_PAUSE_SECONDS
        elif isinstance(error, Exception) and not isinstance(error, TimeoutError):
            status = getattr(error, "status", "no answer")  # of the platform's response, where there was one
            log.warning("could not %s: %s (%s)", self.what, type(error).__name__, status)
            self.pause_seconds = ERROR_PAUSE_SECONDS
        return isinstance(error, Exception)


class _Stop:
    """A request to stop. Before `gracefully` is set, and at the second request, the running task is cancelled."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.gracefully = False
        self._task = asyncio.current_task()

    def request(self) -> None:
        at_once = self.requested.is_set() or not self.gracefully
        self.requested.set()
        if at_once and self._task is not None:
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
