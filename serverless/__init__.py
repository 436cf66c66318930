"""Any handler on any platform: RunPod, Waverless, this machine.

`start({"handler": f})` runs a function of a job, as in RunPod's SDK. A program that has to start more than a function
reads its `Invocation`, then hands a `Service` to `run`, as handler.py does.

- `invocation`, `arguments`, `environment`: how the process was started, its flags, which platform it is on.
- `modes`: worker, API or local mode, from start to exit code. `local` is the platform of API mode.
- `failed_start`: what becomes of jobs when the service cannot start.
- `job_loop`: takes jobs and delivers every answer; its parts are `taking`, `running`, `reporting`, `cancelling`.
- `platform`: what a platform is; `runpod` and `waverless` are two. `tolerant_json` reads what they send, `heartbeat`
  keeps telling them that this worker is alive.
- `service` and `adapters`: what answers jobs, and how functions of every kind become that.

RunPod's SDK is imported late: its import reads most `RUNPOD_*` variables once and for all, and takes almost two
seconds, which local mode can do without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from common.settings import ConfigurationError
from serverless.adapters import is_generator, service_of
from serverless.failed_start import failure_of, report_failed_start
from serverless.invocation import EXIT_USAGE, Invocation, read_invocation
from serverless.modes import refuse, run, run_server
from serverless.progress import progress_update
from serverless.service import Job, JobHandler, Lifespan, Service
from serverless.settings import WorkerSettings
from serverless.user_log import log
from serverless.validation import validate

__all__ = [
    "EXIT_USAGE",
    "Invocation",
    "Job",
    "JobHandler",
    "Lifespan",
    "Service",
    "WorkerSettings",
    "failure_of",
    "log",
    "progress_update",
    "read_invocation",
    "refuse",
    "report_failed_start",
    "run",
    "run_server",
    "start",
    "validate",
]


NO_HTTP = (
    "--serve_http and MODE=http serve the engine; a handler of one's own takes jobs, with --rp_serve_api over HTTP"
)


def start(config: Mapping[str, Any]) -> NoReturn:
    """Run a handler in the mode that the command line and the environment ask for; ends the process.

    config, as in RunPod's SDK:
      handler: a function of a job (`{"id", "input"}`) or a generator function, async or not. What it returns is the
        job's output; what it yields is streamed; `{"error": text}` fails the job, and so does any exception, whose
        text is not sent.
      return_aggregate_stream: whether the outputs of a generator are its result too. Default: no, as in the SDK.
      concurrency_modifier: takes the current number of jobs at once and returns the new one; 0 takes no jobs. Default:
        one job at a time. `--rp_api_concurrency` overrides it.
      refresh_worker: whether this worker ends after a job, so that a fresh one takes its place. Default: no.

    `refresh_worker` in an output asks the same for that job alone; the key is taken out of it.

    The exit code is 0, 1 after a failure, or 2 for a wrong command line or setting.
    """
    handler = config.get("handler")
    modifier = config.get("concurrency_modifier")
    if not callable(handler):
        raise TypeError('start() needs {"handler": f}, where f is a function of a job')
    if modifier is not None and not callable(modifier):
        raise TypeError("'concurrency_modifier' must be a function of the current number of jobs at once")
    invocation = read_invocation(sys.argv[1:])
    if invocation.arguments.serve_http:
        invocation.refuse(ConfigurationError([NO_HTTP]))
    try:
        settings = WorkerSettings.from_environ(os.environ)
    except ConfigurationError as error:
        refuse(invocation, error)
    run(
        invocation,
        service_of(handler, refreshes=bool(config.get("refresh_worker"))),
        settings,
        concurrency=modifier or 1,
        streams=is_generator(handler),
        aggregates=bool(config.get("return_aggregate_stream")),
    )
