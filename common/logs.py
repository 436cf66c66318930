"""The log: one line per record, on standard error; a JSON object a line on a platform, short text elsewhere.

RunPod's console filters a log by job where its lines are JSON objects with `requestId`, which both platforms' SDKs
print (runpod 1.12.0, rp_logger.py). So in that form everything that leaves the process is an object: the worker's
records, the engine's lines, and what the SDK, other libraries and a user's handler print. It has `requestId`,
`message`, `level`, `time` and `source`, unless it was printed as an object of another shape.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from common.masking import LineMask, Mask

LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")  # runpod 1.12.0, rp_logger.py

# What else people write, of other logging systems.
_OTHER_NAMES = {"WARNING": "WARN", "CRITICAL": "ERROR", "FATAL": "ERROR"}

# Python's names for them; the SDK's NOTSET logs nothing.
_PYTHON_LEVELS = {"TRACE": "DEBUG", "WARN": "WARNING", "NOTSET": "CRITICAL"}
# The SDK's names for Python's.
_SDK_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The job that the running task or thread works on: every line that it logs carries this id."""


class LogForm(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


def configure_logging(form: LogForm) -> None:
    """Log to standard error; `common.standard_streams` masks what goes there.

    The HTTP libraries stay at WARNING: below it they log every request and its headers.
    """
    to_standard_error = logging.StreamHandler(sys.stderr)
    to_standard_error.setFormatter(_Formatter(form))
    logging.basicConfig(handlers=[to_standard_error], level=logging.INFO, force=True)
    for library in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)


def set_log_level(level: str) -> None:
    """Log the worker's own lines at this level and above; one of LOG_LEVELS."""
    logging.getLogger("worker").setLevel(_PYTHON_LEVELS.get(level, level))


def level_named(text: str) -> str:
    """The one of LOG_LEVELS that somebody means, in upper or lower case. Raises ValueError if there is none."""
    name = text.strip().upper()
    level = _OTHER_NAMES.get(name, name)
    if level not in LOG_LEVELS:
        raise ValueError(text)
    return level


def log_level() -> tuple[str, Callable[[str], str]]:
    """How a variable with a level is read: see `common.settings.Parser`."""
    return f"one of {', '.join(LOG_LEVELS)}", level_named


def form_in_use() -> LogForm:
    """The form that was configured; text before that."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return next((formatter.form for formatter in formatters if isinstance(formatter, _Formatter)), LogForm.TEXT)


def line_of(
    form: LogForm,
    message: str,
    *,
    level: str = "INFO",
    source: str = "worker",
    job_id: str | None = None,
    fields: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> str:
    """One line of the log, without its end.

    level: one of Python's or the SDK's names. source: who speaks: `worker`, `engine`, `handler`, `output` for what was
    printed. fields: more members of the JSON object. seconds: when, since the epoch; now by default.
    """
    now = time.time() if seconds is None else seconds
    if form is LogForm.TEXT:
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        speaker = "" if source == "worker" else f"{source}: "
        return f"{clock} {level:<7} {speaker}{message}"
    when = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    standard = {
        "requestId": job_id,
        "message": message,
        "level": _SDK_LEVELS.get(level, level),
        "time": when,
        "source": source,
    }
    return _as_json({**standard, **(fields or {}), **standard})


def _as_json(value: Any) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # half of a surrogate pair, or a very long number
        return json.dumps(value, default=str)


class _Formatter(logging.Formatter):
    """Writes records in one form. A record's `fields` (logging's `extra`) become members of the JSON object."""

    def __init__(self, form: LogForm) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        return line_of(
            self.form,
            message,
            level=record.levelname,
            source=getattr(record, "source", "worker"),
            job_id=getattr(record, "job_id", None) or request_id.get(),
            fields=getattr(record, "fields", None),
            seconds=record.created,
        )


class JsonLines(LineMask):
    """Masks a stream of bytes, and makes an object of each line that is not one."""

    def masked(self, lines: str) -> str:
        """Whole lines, each a JSON object."""
        return "".join(f"{self._object(line)}\n" for line in _LINE_ENDS.split(lines) if line.strip())

    def masked_beginning(self, line: str, left_out_bytes: int) -> str:
        """An object for the part that was kept of a line, with a note on what was not."""
        return f"{self._printed(super().masked_beginning(line, left_out_bytes).rstrip())}\n"

    def _object(self, line: str) -> str:
        # Its texts are masked, not the line: a mask over quotes and escapes could leave something that is not JSON. But
        # hardly a line has anything to mask, and without escapes its texts stand in it as they are: one look will do.
        if line.startswith("{"):
            try:
                if isinstance(value := orjson.loads(line), dict):
                    has_nothing = "\\" not in line and self._mask(line) == line
                    return line if has_nothing else _as_json(self._mask.value(value))
            except (orjson.JSONDecodeError, RecursionError):
                pass
        return self._printed(self._mask(line))

    @staticmethod
    def _printed(message: str) -> str:
        return line_of(LogForm.JSON, message, source="output")


_LINE_ENDS = re.compile(r"[\r\n]+")


def mask_for(form: LogForm, mask: Mask) -> LineMask:
    """What everything that is written to a standard stream goes through, in this form."""
    return JsonLines(mask) if form is LogForm.JSON else LineMask(mask)
