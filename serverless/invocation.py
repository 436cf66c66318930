"""How this process was started: its command line, the platform it is on, the secrets it was given."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from common.early_exit import exit_on_signals
from common.logs import LogForm, configure_logging
from common.masking import Mask
from common.settings import ConfigurationError
from common.standard_streams import never_wait_for_readers
from serverless import environment
from serverless.arguments import Arguments, parse_arguments
from serverless.environment import PlatformName

log = logging.getLogger("worker.serverless")

# 0: told to stop, or a job answered. 1: the engine, the machine or a job failed. 2: wrong settings or command line.
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@dataclass(frozen=True)
class Invocation:
    """What is known before any setting is read."""

    arguments: Arguments
    platform: PlatformName
    mask: Mask

    def log_problems(self, error: ConfigurationError) -> None:
        """Log every problem, each in a line of its own."""
        for problem in error.problems:
            log.error("%s", problem)

    def refuse(self, error: ConfigurationError) -> NoReturn:
        """End the process with code 2, every problem in the log."""
        self.log_problems(error)
        sys.exit(EXIT_USAGE)


def read_invocation(argv: list[str]) -> Invocation:
    """Read the command line and the environment, and start logging.

    Waverless's variables are copied to RunPod's, which RunPod's SDK reads when it is imported. Ends the process with
    code 2 and one line for a wrong command line.
    """
    platform = environment.detect(os.environ)
    asked_interval = environment.ping_interval(os.environ)
    os.environ.update(environment.translate(os.environ))
    form = log_form(os.environ, platform)  # in every mode: a load balancer's worker is on a platform too
    arguments = parse_arguments(argv, os.environ, form=form)
    if arguments.log_level:
        os.environ["RUNPOD_LOG_LEVEL"] = arguments.log_level
    if arguments.test_job is not None or arguments.serve_api or arguments.serve_http:
        platform = PlatformName.LOCAL
    mask = Mask.from_environ(os.environ)
    answers_one = arguments.test_job is not None
    # Local mode's answer goes straight to standard output, so that all of it arrives, however slowly it is read.
    flush = never_wait_for_readers(mask, ["stderr"] if answers_one else ["stdout", "stderr"], form=form)
    atexit.register(flush)
    exit_on_signals(EXIT_FAILED if answers_one else EXIT_OK, last=flush)
    configure_logging(form)
    if asked_interval and not environment.is_usable(asked_interval):
        log.warning(
            "a ping interval of %r ms is of no use: pinging every %s ms",
            asked_interval,
            os.environ["RUNPOD_PING_INTERVAL"],
        )
    return Invocation(arguments, platform, mask)


def log_form(environ: Mapping[str, str], platform: PlatformName) -> LogForm:
    """The form of the log: LOG_FORMAT, else JSON on a platform and text on this machine.

    A value that is not accepted counts as none; it is reported with all other problems of the settings.
    """
    asked_for = environ.get("LOG_FORMAT", "").strip().lower()
    if asked_for in tuple(LogForm):
        return LogForm(asked_for)
    return LogForm.TEXT if platform is PlatformName.LOCAL else LogForm.JSON
