"""The modes that a worker runs in, each from start to exit code.

worker    jobs from the platform, RunPod or Waverless, through RunPod's SDK
API       the same, but the platform is a local RunPod in this process (serverless.local)
local     one job, from the command line or from `test_input.json`
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from common.descriptors import raise_descriptor_limit
from common.errors import JobError, StartError, UnavailableError, code_of
from common.job_record import JobRecord, Outcome
from common.logs import set_log_level
from common.masking import Mask
from common.memory import give_back_large_blocks
from common.metrics_page import serve_page
from common.settings import ConfigurationError
from common.signals import Stop, stop_on_signals
from common.tasks import cancel, reason_of_end
from common.variables import without_wrong_variables
from common.web_server import PortInUseError, WebServerError, serving
from serverless import early_sdk
from serverless.arguments import Arguments
from serverless.encoding import NotJsonError, copied
from serverless.environment import PlatformName
from serverless.failed_start import JOBS_AT_ONCE, failing_service, failure_of, lifespan_that_fails, report_failed_start
from serverless.invocation import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Invocation
from serverless.job_loop import JobLoop
from serverless.platform import Delivery, Platform, the_only_one
from serverless.progress import received_by
from serverless.service import Job, Lifespan, Service
from serverless.settings import WorkerSettings

if TYPE_CHECKING:
    from serverless.heartbeat import Heart

log = logging.getLogger("worker.serverless")

# A worker whose service has failed must be gone within 10 s. Jobs in flight fail by themselves; the loop reports any
# that have not failed after this time.
FAILURE_TIMEOUT_SECONDS = 2.0

# Whoever may read the metrics is on this machine, or forwards the port.
METRICS_HOST = "127.0.0.1"

# Hundreds of jobs in flight mean many objects, none of them garbage; with Python's own thresholds (700, 10, 10) the
# collector scans them all the time.
GC_THRESHOLDS = (20_000, 20, 20)


NO_AGGREGATE_HINT = (
    "this handler yields, and its configuration has no return_aggregate_stream: its outputs are in /stream only, and "
    "/runsync and /status show none, as on RunPod"
)


@dataclass(frozen=True)
class Work:
    """Everything a mode needs: what answers jobs, how its outputs are delivered, how many jobs run at once
    (None: what the service can take).

    is_stream: whether jobs have several outputs, even if the platform takes none of them before the result.
    """

    lifespan: Lifespan
    delivery: Delivery
    is_stream: bool
    concurrency: Callable[[int], int] | None
    settings: WorkerSettings
    platform: PlatformName
    check: Callable[[Job], JobError | None]
    mask: Mask
    refusal: StartError | None


def run(
    invocation: Invocation,
    lifespan: Lifespan,
    settings: WorkerSettings,
    *,
    concurrency: int | Callable[[int], int] | None,
    streams: bool = True,
    aggregates: bool = False,
    check: Callable[[Job], JobError | None] = lambda _: None,
    refusal: StartError | None = None,
) -> NoReturn:
    """Answer jobs in the mode that the invocation asks for; ends the process.

    concurrency: jobs at once, or a function that takes the current number and returns the new one; None: as many as the
    service can take (`Service.capacity`). streams: whether a job may have several outputs, each sent as it comes.
    aggregates: whether these are the job's result too. check: what is wrong with a job, as far as that can be told
    before the service starts; local mode asks, so as not to start it for a job that will be refused. refusal: what is
    wrong with the settings, if that is why the service will not start.
    """
    arguments = invocation.arguments
    if arguments.is_port_given:  # as in Waverless's SDK, where the flag is about /health too
        settings = replace(settings, waverless_health_port=arguments.api_port)
    _prepare_process(settings)
    early_sdk.catch_up(os.environ)
    concurrency = arguments.api_concurrency or concurrency
    work = Work(
        lifespan=lifespan,
        delivery=_delivery(
            invocation.platform, streams=streams, aggregates=aggregates or arguments.test_job is not None
        ),
        is_stream=streams,
        concurrency=(lambda _: concurrency) if isinstance(concurrency, int) else concurrency,
        settings=settings,
        platform=invocation.platform,
        check=check,
        mask=invocation.mask,
        refusal=refusal,
    )
    sys.exit(_run(work, arguments))


def refuse(invocation: Invocation, error: ConfigurationError) -> NoReturn:
    """End a process whose settings are wrong, with code 2 and every problem in the log.

    A deployed worker first fails the platform's jobs with the problems, for FAILED_START_SECONDS: every other worker of
    this endpoint has the same settings.
    """
    if invocation.platform is PlatformName.LOCAL:
        invocation.refuse(error)
    invocation.log_problems(error)
    refusal = failure_of(error, invocation.mask)
    settings = WorkerSettings.from_environ(without_wrong_variables(os.environ))
    run(invocation, lifespan_that_fails(refusal), settings, concurrency=1, refusal=refusal)


def run_server(main: Callable[[], Coroutine[Any, Any, int]], settings: WorkerSettings) -> NoReturn:
    """Run something other than jobs, in a process and an event loop like those of jobs; ends the process.

    main: returns the exit code.
    """
    _prepare_process(settings)
    sys.exit(_run_in_loop(main()))


def _prepare_process(settings: WorkerSettings) -> None:
    os.environ["RUNPOD_LOG_LEVEL"] = settings.log_level  # unset, the SDK logs at DEBUG and prints every output
    set_log_level(settings.log_level)
    raise_descriptor_limit()
    give_back_large_blocks()


def _delivery(platform: PlatformName, *, streams: bool, aggregates: bool) -> Delivery:
    if platform is PlatformName.WAVERLESS:
        from serverless.waverless import one_object

        return Delivery(streamed=False, result=one_object, reports_progress=False)
    if not streams:
        return Delivery(streamed=False, result=the_only_one)
    return Delivery(streamed=True, result=list if aggregates else lambda _: [], is_whole=aggregates)


def _run(work: Work, arguments: Arguments) -> int:
    if arguments.test_job is not None:
        return _run_in_loop(_answer_one(work, arguments.test_job))
    try:
        if arguments.serve_api:
            # imports the web framework, which the other modes do not need
            from serverless.local import Readiness, local_platform

            if work.is_stream and not work.delivery.is_whole:
                log.info("%s", NO_AGGREGATE_HINT)
            readiness = Readiness(work.lifespan)
            platform = partial(local_platform, arguments, work.settings, readiness, is_stream=work.is_stream)
            if arguments.is_realtime:
                platform = partial(_with_heart, platform, dict(os.environ))
            return _run_in_loop(_work(replace(work, lifespan=readiness.lifespan), platform))
        return _run_worker(work)
    except WebServerError as error:
        log.error("%s", error)
        return EXIT_FAILED


def _run_in_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end on uvloop, with fewer garbage collections; docs/performance.md says how much each saves."""
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()  # what is imported by now stays; the collector need not scan it again
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        running = loop.create_task(main)
        while True:
            try:
                return loop.run_until_complete(running)
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio ends the loop for these two. They come from a task that a handler has started: whoever awaits
                # it gets them too, and it is no reason to end other jobs.
                if running.done():
                    raise
                log.error("a task of a handler raised %s; the worker goes on", type(error).__name__)


async def _answer_one(work: Work, job: Job) -> int:
    """Answer one job; print it on standard output as the platform would report it."""
    if (refusal := work.check(job)) is not None:
        return _print_report({"id": job["id"], "status": "FAILED", "error": refusal.as_json()})
    outputs: list[Any] = []
    error: str | None = None
    with stop_on_signals() as stop:
        try:
            async with work.lifespan() as service:
                error = await _answer(service, job, outputs)
        except StartError as exception:
            log.error("%s", exception)
            error = UnavailableError(str(exception)).as_json()
        except BaseException as exception:  # sys.exit() too: a handler's is not the program's
            if stop.requested.is_set():
                return EXIT_FAILED
            log.exception("the handler raised %s", type(exception).__name__)
            error = JobError().as_json()
    report: dict[str, Any] = {"id": job["id"], "status": "FAILED" if error else "COMPLETED"}
    if not error or outputs:
        report["output"] = work.delivery.result(outputs)
    if error:
        report["error"] = error
    return _print_report(report)


async def _answer(service: Service, job: Job, outputs: list[Any]) -> str | None:
    """Run the handler for a job, and add its outputs to the list. Returns the error if it reports one."""
    record, error = JobRecord.begin(str(job["id"])), None
    with record.in_context():
        try:
            with received_by(_show_progress):
                async with aclosing(service.handler(dict(job))) as answer:  # it may change its job
                    async for output in answer:
                        reading = service.read(output)
                        if (error := reading.error) is None and not reading.is_empty:
                            outputs.append(reading.output)
        except BaseException as exception:
            record.end(Outcome.CANCELLED if isinstance(exception, asyncio.CancelledError) else Outcome.FAILED)
            raise
        if error is None:
            record.end(Outcome.COMPLETED, HTTPStatus.OK)
        else:
            record.end(Outcome.FAILED, code_of(error))
    return error


def _show_progress(job_id: str, progress: Any) -> bool:
    log.info("job %s: progress: %s", job_id, json.dumps(progress, ensure_ascii=False))
    return True


def _print_report(report: dict[str, Any]) -> int:
    try:
        report = copied(report)
    except NotJsonError:
        error = JobError("an output of this job is not JSON")
        report = {"id": report["id"], "status": "FAILED", "error": error.as_json()}
    text = json.dumps(report, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "replace"))  # UTF-8, whatever the locale says
    sys.stdout.flush()
    return EXIT_FAILED if "error" in report else EXIT_OK


def _run_worker(work: Work) -> int:
    from serverless import runpod

    log.info("worker %s starts on %s, with RunPod's SDK %s", runpod.WORKER_ID, work.platform.value, runpod.VERSION)
    if work.refusal is None and not runpod.is_machine_fit():
        log.error("a fitness check of this machine failed; see above")
        return EXIT_FAILED
    # The heartbeat starts before the engine: loading a model takes minutes, and the platform should see us alive.
    heart = runpod.new_heart(os.environ)
    heart.start()
    work = replace(work, lifespan=partial(_told_to, heart, work.lifespan))
    return _run_in_loop(_work(work, lambda _: _deployed_platform(work, heart)))


@asynccontextmanager
async def _told_to(heart: Heart, lifespan: Lifespan) -> AsyncGenerator[Service, None]:
    """The same lifespan; the heartbeat learns when the service is ready."""
    async with lifespan() as service:
        heart.ready(service.start_seconds)
        yield service


@asynccontextmanager
async def _with_heart(
    serve: Callable[[asyncio.Event], AbstractAsyncContextManager[Platform]],
    environ: Mapping[str, str],
    stopping: asyncio.Event,
) -> AsyncGenerator[Platform, None]:
    """The local API on a platform, which wants to be told that this worker is alive.

    environ: the platform's own; the API replaces its addresses.
    """
    async with serve(stopping) as connection:
        from serverless import runpod

        heart = runpod.new_heart(environ)
        heart.start()
        beating = asyncio.create_task(heart.keep(), name="keeping the heartbeat")
        try:
            yield connection
        finally:
            await cancel(beating)


@asynccontextmanager
async def _deployed_platform(work: Work, heart: Heart) -> AsyncGenerator[Platform, None]:
    """What a deployed worker runs besides its jobs; gives the open connection to the platform."""
    from serverless.runpod import RunPodPlatform

    async with AsyncExitStack() as stack:
        beating = asyncio.create_task(heart.keep(), name="keeping the heartbeat")
        stack.push_async_callback(cancel, beating)
        if (port := work.settings.metrics_port) is not None:
            serving_metrics = serving(serve_page, METRICS_HOST, port, port_setting="METRICS_PORT")
            log.info("metrics on http://%s:%d/metrics", METRICS_HOST, await stack.enter_async_context(serving_metrics))
        if work.platform is PlatformName.WAVERLESS:
            from serverless.waverless import WaverlessPlatform, health_app

            port = work.settings.waverless_health_port
            try:
                await stack.enter_async_context(
                    serving(health_app(), "0.0.0.0", port, port_setting="WAVERLESS_HEALTH_PORT")
                )
            except PortInUseError as error:
                log.warning("no /health for Waverless, but jobs are answered: %s", error)
            yield await stack.enter_async_context(WaverlessPlatform.connect(streams=work.is_stream))
        else:
            yield await stack.enter_async_context(RunPodPlatform.connect(streams=work.is_stream))


async def _work(work: Work, platform: Callable[[asyncio.Event], AbstractAsyncContextManager[Platform]]) -> int:
    """Answer the platform's jobs until told to stop, or until the service breaks. Returns the exit code.

    platform: the connection to it; called with the event that is set when this worker is told to stop.
    """
    with stop_on_signals() as stop:
        try:
            async with platform(stop.requested) as connection:
                try:
                    while (exit_code := await _serve(work, connection, stop)) is None:
                        log.info("restarting this worker in place; on a platform, a fresh one would take over")
                    return exit_code
                except StartError as error:
                    return await _fail_jobs(work, error, connection, stop)
        except asyncio.CancelledError:
            if not stop.requested.is_set():
                raise
            return EXIT_OK


async def _serve(work: Work, connection: Platform, stop: Stop) -> int | None:
    """Start the service and answer jobs with it. Returns the exit code, or None if it shall be started afresh."""
    stop.gracefully = False  # while there are no jobs to finish, a signal cancels the start
    if stop.requested.is_set():
        return EXIT_OK
    async with work.lifespan() as service:
        stop.gracefully = True
        jobs = JobLoop(connection, service, concurrency=work.concurrency, delivery=work.delivery)
        with received_by(jobs.progress):
            exit_code = await _take_jobs(service, jobs, work.settings, stop)
    if exit_code is None and work.platform is not PlatformName.LOCAL:
        return EXIT_OK
    return exit_code


async def _fail_jobs(work: Work, error: StartError, platform: Platform, stop: Stop) -> int:
    """Tell the platform that this worker cannot start; if none could, fail its jobs for a while with the reason."""
    if work.refusal is None:  # else it has been logged, problem by problem
        log.error("%s", error)
    exit_code = EXIT_USAGE if work.refusal else EXIT_FAILED
    if work.platform is PlatformName.LOCAL:
        return exit_code
    await report_failed_start(error, mask=work.mask)
    seconds = work.settings.failed_start_seconds
    if not error.is_lasting or not seconds:
        return exit_code
    stop.gracefully = True
    service = failing_service(error, seconds=seconds, mask=work.mask)
    jobs = JobLoop(platform, service, concurrency=lambda _: JOBS_AT_ONCE, delivery=work.delivery)
    log.error("every worker would fail in this way: jobs fail with the reason for %g s (FAILED_START_SECONDS)", seconds)
    return exit_code if await _take_jobs(service, jobs, work.settings, stop) else EXIT_OK


async def _take_jobs(service: Service, jobs: JobLoop, settings: WorkerSettings, stop: Stop) -> int | None:
    """Answer jobs to the end. Returns the exit code, or None if a job has asked for a fresh worker.

    The others in flight are then finished, however long they take: they are not to blame.
    """
    jobs.start()
    log.info("taking jobs")
    told = asyncio.create_task(stop.requested.wait())
    failure = asyncio.create_task(service.wait_for_failure())
    breakage = asyncio.create_task(jobs.wait_for_failure())
    refresh = asyncio.create_task(jobs.drain_for_refresh())
    await asyncio.wait({told, failure, breakage, refresh}, return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        await cancel(failure, breakage, refresh)
        log.info("told to stop: finishing %d jobs", jobs.in_flight)
        await jobs.stop(timeout_seconds=settings.shutdown_timeout_seconds, hurry=stop.hurried)
        return EXIT_OK
    if not (failure.done() or breakage.done()):
        await cancel(told, failure, breakage)
        await jobs.stop(timeout_seconds=0)
        return None
    reason = _reason(failure if failure.done() else breakage)
    await cancel(told, failure, breakage, refresh)
    log.error("%s; this worker ends, so that the platform replaces it", reason)
    await jobs.stop(timeout_seconds=FAILURE_TIMEOUT_SECONDS, reason=reason)
    return EXIT_FAILED


def _reason(task: asyncio.Task[str]) -> str:
    """The reason that a task waited for, or why the task itself failed."""
    if task.cancelled() or task.exception() is not None:
        return reason_of_end(task, "watching over the jobs")
    return task.result()
