"""The worker's own settings, read once from the environment. The engine's options are in engine.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from routes import is_plain_path

MINUTES = 60
MIB = 1024 * 1024
LOG_LEVELS = ("NOTSET", "TRACE", "DEBUG", "INFO", "WARN", "ERROR")  # runpod 1.12.0, rp_logger.py

# Python's own JSON reader gives up at about 1000 levels; what is deeper than this could not be told apart from a bomb.
MOST_JSON_LEVELS = 250


class ConfigurationError(Exception):
    """The environment holds values that the worker cannot use; `problems` has one sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for."""

    request_bytes: int = 20 * MIB
    """The largest request body (`MAX_REQUEST_BYTES`). RunPod itself takes 10 MB at /run and 20 MB at /runsync."""

    json_depth: int = 100
    """How deep arrays and objects may nest in a job's input (`MAX_JSON_DEPTH`)."""

    n: int = 128
    """The most answers to one prompt, the parameter `n` (`MAX_N`). OpenAI's API takes up to 128."""


@dataclass(frozen=True)
class Settings:
    """What a user may set of the worker itself. All times in seconds."""

    max_concurrency: int = 300
    """Jobs handled at once (`MAX_CONCURRENCY`)."""

    max_waiting_jobs: int = 1000
    """Jobs that may wait while the engine restarts (`MAX_WAITING_JOBS`); more are refused with 503."""

    request_timeout_seconds: float = 10 * MINUTES
    """The longest silence of the engine in the middle of a request (`REQUEST_TIMEOUT_SECONDS`)."""

    startup_timeout_seconds: float = 30 * MINUTES
    """The longest wait for the engine to become ready (`STARTUP_TIMEOUT_SECONDS`). A first start downloads 62 GB."""

    shutdown_timeout_seconds: float = 2 * MINUTES
    """How long jobs in flight may take to finish once the worker is told to stop (`SHUTDOWN_TIMEOUT_SECONDS`)."""

    engine_max_restarts: int = 3
    """How often a dead engine is started again within the window (`ENGINE_MAX_RESTARTS`); 0 means never."""

    engine_restart_window_seconds: float = 10 * MINUTES
    """The time in which restarts are counted (`ENGINE_RESTART_WINDOW_SECONDS`)."""

    limits: Limits = Limits()

    allowed_routes: frozenset[str] = frozenset()
    """Paths on the engine that are open to clients beside the usual ones (`ALLOWED_ROUTES`)."""

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
            max_concurrency=_count(environ, "MAX_CONCURRENCY", cls.max_concurrency, problems),
            max_waiting_jobs=_count(environ, "MAX_WAITING_JOBS", cls.max_waiting_jobs, problems, least=0),
            engine_max_restarts=_count(environ, "ENGINE_MAX_RESTARTS", cls.engine_max_restarts, problems, least=0),
            limits=Limits(
                request_bytes=_count(environ, "MAX_REQUEST_BYTES", Limits.request_bytes, problems),
                json_depth=_count(environ, "MAX_JSON_DEPTH", Limits.json_depth, problems, most=MOST_JSON_LEVELS),
                n=_count(environ, "MAX_N", Limits.n, problems),
            ),
            allowed_routes=_paths(environ, "ALLOWED_ROUTES", problems),
            **{
                name.lower(): _seconds(environ, name, getattr(cls, name.lower()), problems)
                for name in (
                    "REQUEST_TIMEOUT_SECONDS",
                    "STARTUP_TIMEOUT_SECONDS",
                    "SHUTDOWN_TIMEOUT_SECONDS",
                    "ENGINE_RESTART_WINDOW_SECONDS",
                )
            },
        )
        if problems:
            raise ConfigurationError(problems)
        return settings


def _count(
    environ: Mapping[str, str],
    name: str,
    default: int,
    problems: list[str],
    *,
    least: int = 1,
    most: int | None = None,
) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        span = f"from {least} to {most}" if most is not None else f"of at least {least}"
        problems.append(f"{name}={text!r}: expected a whole number {span}")
        return default
    return value


def _seconds(environ: Mapping[str, str], name: str, default: float, problems: list[str]) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf):
        problems.append(f"{name}={text!r}: expected a number of seconds above 0")
        return default
    return value


def _paths(environ: Mapping[str, str], name: str, problems: list[str]) -> frozenset[str]:
    paths = environ.get(name, "").replace(",", " ").split()
    problems += [f"{name}: {path!r} is no plain path such as /tokenize" for path in paths if not is_plain_path(path)]
    return frozenset(paths)
