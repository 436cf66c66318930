"""The log: one line per record, on standard error."""

from __future__ import annotations

import logging
import sys

LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")  # runpod 1.12.0, rp_logger.py

# Python's names for them; the SDK's NOTSET logs nothing.
_PYTHON_LEVELS = {"TRACE": "DEBUG", "WARN": "WARNING", "NOTSET": "CRITICAL"}


def configure_logging() -> None:
    """Log to standard error; `common.standard_streams` masks what goes there.

    The HTTP libraries stay at WARNING: below it they log every request and its headers.
    """
    to_standard_error = logging.StreamHandler(sys.stderr)
    to_standard_error.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[to_standard_error], level=logging.INFO, force=True)
    for library in ("httpx", "httpcore", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)


def set_log_level(level: str) -> None:
    """Log the worker's own lines at this level and above; one of LOG_LEVELS."""
    logging.getLogger("worker").setLevel(_PYTHON_LEVELS.get(level, level))
