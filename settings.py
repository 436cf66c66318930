"""The worker's own settings, read once from the environment. The engine's options are in engine.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MINUTES = 60
LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")  # runpod 1.12.0, rp_logger.py


class ConfigurationError(Exception):
    """The environment holds values that the worker cannot use; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Settings:
    """What a user may set of the worker itself. All times in seconds."""

    max_concurrency: int = 300
    """Jobs handled at once (`MAX_CONCURRENCY`)."""

    request_timeout_seconds: float = 10 * MINUTES
    """The longest silence of the engine in the middle of a request (`REQUEST_TIMEOUT_SECONDS`)."""

    startup_timeout_seconds: float = 30 * MINUTES
    """The longest wait for the engine to become ready (`STARTUP_TIMEOUT_SECONDS`). A first start downloads 62 GB."""

    shutdown_timeout_seconds: float = 2 * MINUTES
    """How long jobs in flight may take to finish once the worker is told to stop (`SHUTDOWN_TIMEOUT_SECONDS`)."""

    log_level: str = "INFO"
    """The least that is logged, in the SDK's words (`RUNPOD_LOG_LEVEL`, or its older name `RUNPOD_DEBUG_LEVEL`)."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; an absent or empty variable means its default.

        Raises ConfigurationError with every problem at once.
        """
        problems: list[str] = []
        log_level = (environ.get("RUNPOD_LOG_LEVEL") or environ.get("RUNPOD_DEBUG_LEVEL") or cls.log_level).upper()
        if log_level not in LOG_LEVELS:
            problems.append(f"RUNPOD_LOG_LEVEL={log_level!r}: expected one of {', '.join(LOG_LEVELS)}")
        settings = cls(
            log_level=log_level,
            max_concurrency=int(_number(environ, "MAX_CONCURRENCY", cls.max_concurrency, problems, whole=True)),
            **{
                name.lower(): _number(environ, name, getattr(cls, name.lower()), problems)
                for name in ("REQUEST_TIMEOUT_SECONDS", "STARTUP_TIMEOUT_SECONDS", "SHUTDOWN_TIMEOUT_SECONDS")
            },
        )
        if problems:
            raise ConfigurationError(problems)
        return settings


def _number(
    environ: Mapping[str, str], name: str, default: float, problems: list[str], *, whole: bool = False
) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(int(text)) if whole else float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        kind = "a whole number of at least 1" if whole else "a number of seconds above 0"
        problems.append(f"{name}={text!r}: expected {kind}")
        return default
    return value
