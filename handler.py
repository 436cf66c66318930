"""The entry point: a job's input becomes one request to the engine, and the engine's answer becomes the job's outputs.

Run it as `python handler.py`: with a platform's variables in the environment it is a worker; with `--rp_serve_api` it
serves the platform's API on this machine; with `--serve_http` it serves HTTP without a queue; with `--test_input` or a
`test_input.json` it answers one job and exits.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.descriptors import keep_standard_descriptors
from common.early_exit import exit_on_signals

if __name__ == "__main__":
    keep_standard_descriptors()
    exit_on_signals()  # the imports below take a second or two

from dotenv import load_dotenv

from common.early_health import EarlyHealth
from engine import launch_early
from gateway.http_server.early import answer_early

if __name__ == "__main__":
    load_dotenv(Path.cwd() / ".env")  # variables that are already set win
    early = answer_early(sys.argv[1:], os.environ)  # for the same second or two
    early_engine = launch_early(sys.argv[1:], os.environ)  # which imports meanwhile

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NoReturn

from httpx import AsyncClient

import serverless
from common import job_record
from common.errors import JobError
from common.helper_process import HelperProcess
from common.masking import Mask
from common.metrics_page import METRICS_PATH, serve_page
from common.settings import Concurrency, ConfigurationError
from common.variables import without_wrong_variables
from engine import configure_here, read_image_file, start_limit_warnings, warnings_for
from gateway.deliver import Upstream, as_job_error, create_client
from gateway.error_events import error_event
from gateway.errors import make_presentable
from gateway.http_server.access import Access
from gateway.http_server.app import App
from gateway.http_server.bodies import Bodies
from gateway.http_server.server import serve, serve_failure
from gateway.http_server.settings import HttpSettings
from gateway.http_server.turns import Turns
from gateway.intake import Intake, path_asked_for
from gateway.request import build_request
from gateway.response import ErrorEvent, LastEvents, Output
from gateway.settings import GatewaySettings
from serverless import Job, JobHandler, WorkerSettings
from sglang_engine.capacity import Capacity
from sglang_engine.early_start import EarlyStart
from sglang_engine.launch import Launch
from sglang_engine.process import Engine
from sglang_engine.settings import EngineSettings
from sglang_engine.supervisor import Supervisor
from sglang_engine.telling import Telling

log = logging.getLogger("worker.handler")


def create_handler(intake: Intake, upstream: Upstream, *, request_timeout_seconds: float, mask: Mask) -> JobHandler:
    """The handler of every job, an async generator function.

    It yields the job's outputs in order: strings of whole SSE events while the engine streams, or one parsed JSON
    answer. A failed job's last output is `{"error": "<JSON>"}`, the form in which the SDK takes an error; if events
    have already been sent, an SSE error event goes before it. It raises nothing but CancelledError, and always closes
    the engine's stream.
    """

    async def handler(job: Job) -> AsyncGenerator[Output, None]:
        record, events_sent = job_record.current(), False
        try:
            request = await intake.request_of(job.get("input"))
            record.route, record.streamed = request.path, request.stream
            async with aclosing(upstream.deliver(request, label=f"job {job.get('id')}")) as outputs:
                async for output in outputs:
                    yield output
                    events_sent = events_sent or isinstance(output, str)
        except Exception as exception:
            error = as_job_error(exception, request_timeout_seconds=request_timeout_seconds)
            make_presentable(error, mask)
            record.code, record.error_type = error.code, error.type
            if events_sent or isinstance(exception, ErrorEvent):
                yield error_event(error, path_asked_for(job.get("input")))
            yield {"error": error.as_json()}

    return handler


@asynccontextmanager
async def service(
    launch: Launch,
    settings: GatewaySettings,
    engine_settings: EngineSettings,
    mask: Mask,
    *,
    can_stream: bool,
    concurrency: Concurrency,
    early_engine: EarlyStart | None,
) -> AsyncGenerator[serverless.Service, None]:
    """Start the engine and wait until it is warm; give a service that answers jobs with it; stop it at the end.

    Raises StartError if the engine does not start.
    """
    client, engine = _client_of(launch, settings), Engine(launch, mask, early_engine)
    async with (
        HelperProcess() as helper,
        client,
        Supervisor(engine, engine_settings) as supervisor,
        Capacity.of(client, supervisor, concurrency) as capacity,
        Telling.of(client, supervisor, has_metrics=launch.has_metrics),
    ):
        intake = Intake(helper, settings, served_model_name=launch.served_model_name, can_stream=can_stream)
        yield serverless.Service(
            handler=create_handler(
                intake,
                _upstream_of(client, supervisor, settings),
                request_timeout_seconds=settings.request_timeout_seconds,
                mask=mask,
            ),
            wait_until_ready=supervisor.wait_until_ready,
            is_ready=lambda: supervisor.is_ready,
            wait_for_failure=supervisor.wait_for_failure,
            error_event=lambda job, error: error_event(error, path_asked_for(job.get("input"))),
            is_whole_answer=lambda output: not isinstance(output, str),
            ends_answer=lambda output: isinstance(output, LastEvents),
            takes_large_json=True,
            start_seconds=engine.start_phases,
            capacity=capacity,
        )


def _client_of(launch: Launch, settings: GatewaySettings) -> AsyncClient:
    return create_client(
        launch.base_url, api_key=launch.api_key, request_timeout_seconds=settings.request_timeout_seconds
    )


def _upstream_of(client: AsyncClient, supervisor: Supervisor, settings: GatewaySettings) -> Upstream:
    return Upstream(
        client,
        supervisor,
        stream_flush_seconds=settings.stream_flush_seconds,
        max_response_bytes=settings.max_response_bytes,
    )


def refusal_of(job: Job, settings: GatewaySettings, launch: Launch) -> JobError | None:
    """What is wrong with a job's input, as far as that can be told without the engine."""
    try:
        build_request(
            job.get("input"),
            served_model_name=launch.served_model_name,
            limits=settings.limits,
            allowed_routes=settings.allowed_routes,
        )
    except JobError as error:
        return error
    return None


def _check_ports(invocation: serverless.Invocation, launch: Launch) -> None:
    """Refuse an engine's port that is the local API's own: the engine would fail minutes later."""
    if invocation.arguments.serve_api and invocation.arguments.api_port == launch.port:
        wrong = (
            f"PORT={launch.port} is the port of the local API itself; the engine needs another, or --rp_api_port does"
        )
        invocation.refuse(ConfigurationError([wrong]))


async def serve_http(
    launch: Launch,
    settings: GatewaySettings,
    engine_settings: EngineSettings,
    http_settings: HttpSettings,
    concurrency: Concurrency,
    mask: Mask,
    early: EarlyHealth | None,
) -> int:
    """Serve HTTP without a queue, from before the engine is started until after it has ended. Returns the exit code.

    early: what answers health checks until then.
    """
    client = _client_of(launch, settings)
    supervisor = Supervisor(Engine(launch, mask), engine_settings)
    async with HelperProcess() as helper, client:
        app = App(
            _upstream_of(client, supervisor, settings),
            supervisor,
            Bodies(helper, settings.limits),
            Access(launch.api_key),
            mask,
            turns=Turns(
                concurrency.most
                if concurrency.most and not concurrency.is_auto
                else Capacity(client, supervisor, most=concurrency.most),
                most_waiting=engine_settings.max_waiting_jobs,
                timeout_seconds=settings.request_timeout_seconds,
            ),
            health_paths=http_settings.health_paths,
            allowed_routes=settings.allowed_routes,
            request_timeout_seconds=settings.request_timeout_seconds,
            routes={METRICS_PATH: serve_page},
        )
        report = partial(serverless.report_failed_start, mask=mask)
        async with Telling.of(client, supervisor, has_metrics=launch.has_metrics):
            return await serve(app, supervisor, http_settings, early, report)


def refuse(
    invocation: serverless.Invocation, error: ConfigurationError, early: EarlyHealth | None, *, at_terminal: bool
) -> NoReturn:
    """End a process whose settings are wrong, with code 2; whoever waits for it is told first what is wrong."""
    if not invocation.arguments.serve_http:
        serverless.refuse(invocation, error)
    invocation.log_problems(error)
    settings = HttpSettings.of_the_readable(os.environ, at_terminal=at_terminal)
    worker_settings = WorkerSettings.from_environ(without_wrong_variables(os.environ))
    report = partial(serverless.report_failed_start, mask=invocation.mask)
    failure = serverless.failure_of(error, invocation.mask)
    serverless.run_server(
        partial(serve_failure, failure, settings, early, report, exit_code=serverless.EXIT_USAGE), worker_settings
    )


def main(early: EarlyHealth | None = None, early_engine: EarlyStart | None = None) -> NoReturn:
    """The program: serve GLM-4.7-Flash in the mode that the command line and the environment ask for."""
    at_terminal = os.isatty(2)  # before the next line puts a pipe in its place
    invocation = serverless.read_invocation(sys.argv[1:])
    serves_http = invocation.arguments.serve_http
    for warning in warnings_for(os.environ):
        log.warning("%s", warning)
    try:
        http_settings = HttpSettings.from_environ(os.environ, at_terminal=at_terminal) if serves_http else None
        engine_environ = http_settings.engine_environ(os.environ) if http_settings else os.environ
        # What was planned for the early engine holds: it had this environment, and looking at the GPUs takes time.
        launch = early_engine.launch if early_engine else configure_here(engine_environ, read_image_file())
        settings, worker_settings = GatewaySettings.from_environ(os.environ), WorkerSettings.from_environ(os.environ)
        engine_settings = EngineSettings.from_environ(os.environ)
    except ConfigurationError as error:
        if early_engine is not None:
            early_engine.give_up()
        refuse(invocation, error, early, at_terminal=at_terminal)
    for warning in launch.warnings:
        log.warning("%s", warning)
    for note in launch.notes:
        log.info("%s", note)
    invocation.mask.add(launch.secrets)
    for warning in start_limit_warnings(launch, os.environ):
        log.warning("%s", warning)
    _check_ports(invocation, launch)
    if http_settings is not None:
        serving = partial(
            serve_http,
            launch,
            settings,
            engine_settings,
            http_settings,
            worker_settings.max_concurrency,
            invocation.mask,
            early,
        )
        serverless.run_server(serving, worker_settings)
    can_stream, concurrency = invocation.platform.takes_streams, worker_settings.max_concurrency
    serverless.run(
        invocation,
        partial(
            service,
            launch,
            settings,
            engine_settings,
            invocation.mask,
            can_stream=can_stream,
            concurrency=concurrency,
            early_engine=early_engine,
        ),
        worker_settings,
        concurrency=None if concurrency.is_auto else concurrency.most,
        aggregates=True,
        check=partial(refusal_of, settings=settings, launch=launch),
    )


if __name__ == "__main__":
    main(early, early_engine)
