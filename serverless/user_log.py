"""`serverless.log`: lines of a handler's own, in the worker's log."""

from __future__ import annotations

import logging
import os
from typing import Any

from common.logs import LogForm, configure_logging, form_in_use, level_named, set_log_level
from serverless import environment
from serverless.invocation import log_form

_logger = logging.getLogger("worker.handler")


class Log:
    """Writes lines as the worker's own are written: a JSON object on a platform, readable text on a terminal.

    job_id (or request_id, as RunPod's SDK calls it): the job that a line is about. A line that is logged by a handler,
    in its own task or thread, has its job's id anyway.
    """

    def debug(self, message: Any, job_id: str | None = None, *, request_id: str | None = None) -> None:
        """Log what helps to find a mistake."""
        self._log(logging.DEBUG, message, job_id or request_id)

    def info(self, message: Any, job_id: str | None = None, *, request_id: str | None = None) -> None:
        """Log what happens."""
        self._log(logging.INFO, message, job_id or request_id)

    def warn(self, message: Any, job_id: str | None = None, *, request_id: str | None = None) -> None:
        """Log what is not as it should be."""
        self._log(logging.WARNING, message, job_id or request_id)

    def error(self, message: Any, job_id: str | None = None, *, request_id: str | None = None) -> None:
        """Log what went wrong."""
        self._log(logging.ERROR, message, job_id or request_id)

    # The other names by which the two SDKs and Python know these.
    trace = debug
    warning = warn

    def _log(self, level: int, message: Any, job_id: str | None) -> None:
        if not logging.getLogger().handlers:
            _configure_before_start()
        if job_id is not None and form_in_use() is LogForm.TEXT:
            message = f"job {job_id}: {message}"  # there is no other place for it
        _logger.log(level, "%s", message, extra={"job_id": job_id, "source": "handler"})


log = Log()


def _configure_before_start() -> None:
    """For what a program logs before it calls `start`, such as that it loads a model."""
    configure_logging(log_form(os.environ, environment.detect(os.environ)))
    level = os.environ.get("WAVERLESS_LOG_LEVEL") or os.environ.get("RUNPOD_LOG_LEVEL") or "INFO"
    try:
        set_log_level(level_named(level))
    except ValueError:  # `start` refuses it
        set_log_level("INFO")
