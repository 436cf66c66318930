"""The loading dock: which mode the program runs in, and how it ends.

Two modes so far: worker (jobs from the platform, through RunPod's SDK) and local (one job from the command line or from
`test_input.json`). The SDK is imported late: that reads most `RUNPOD_*` variables for good, and costs almost two
seconds that local mode need not spend.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_process import EngineError
from errors import EngineUnavailableError, JobError
from job_loop import Job, JobHandler, JobLoop, error_of
from masking import Mask, MaskingFormatter
from settings import Settings

log = logging.getLogger("worker.serverless")

# 0: told to stop, or a job answered. 1: the engine, the machine or a job failed. 2: wrong settings or command line.
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

TEST_INPUT_FILE = "test_input.json"

# A worker whose engine is given up must be gone within 10 s. Jobs in flight fail by themselves; what has not by then is
# reported by the loop.
FAILURE_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Service:
    """What takes jobs while a lifespan lasts.

    handler: answers each job, `{"id": …, "input": …}`.
    wait_until_ready: returns while jobs should be taken; raises JobError when they never will be again.
    wait_for_failure: returns the reason once the service breaks for good.
    error_event: an error in the form in which a broken-off stream ends.
    """

    handler: JobHandler
    wait_until_ready: Callable[[], Coroutine[Any, Any, None]]
    wait_for_failure: Callable[[], Coroutine[Any, Any, str]]
    error_event: Callable[[JobError], str]


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


def configure_logging(mask: Mask) -> None:
    """Log to standard error, secrets masked.

    The HTTP libraries stay at WARNING: below it they log every request and its headers.
    """
    to_standard_error = logging.StreamHandler(sys.stderr)
    to_standard_error.setFormatter(MaskingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", mask))
    logging.basicConfig(handlers=[to_standard_error], level=logging.INFO, force=True)
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


def _run_worker(lifespan: Lifespan, settings: Settings) -> int:
    import runpod_sdk

    log.info("worker %s starts, with RunPod's SDK %s", runpod_sdk.WORKER_ID, runpod_sdk.VERSION)
    if not runpod_sdk.is_machine_fit():
        log.error("a fitness check of this machine failed; see above")
        return EXIT_FAILED
    # The heartbeat runs before the engine does: loading a model takes minutes, and the platform should see us alive.
    runpod_sdk.start_heartbeat()
    return asyncio.run(_work(lifespan, settings))


async def _work(lifespan: Lifespan, settings: Settings) -> int:
    from runpod_sdk import RunPodPlatform

    with _stop_on_signals() as stop:
        try:
            async with lifespan() as service, RunPodPlatform.connect() as platform:
                stop.gracefully = True
                return await _take_jobs(
                    service,
                    JobLoop(
                        platform,
                        service.handler,
                        capacity=settings.max_concurrency,
                        wait_until_ready=service.wait_until_ready,
                        error_event=service.error_event,
                    ),
                    settings,
                    stop,
                )
        except EngineError as error:
            log.error("%s", error)
            return EXIT_FAILED
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_OK


async def _take_jobs(service: Service, jobs: JobLoop, settings: Settings, stop: _Stop) -> int:
    """Take jobs until told to stop, or until the service breaks. Returns the exit code."""
    failure = asyncio.create_task(service.wait_for_failure())
    told = asyncio.create_task(stop.requested.wait())
    taking = jobs.start()
    log.info("taking jobs, up to %d at once", settings.max_concurrency)
    await asyncio.wait({failure, told, taking}, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        failure.cancel()
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
