"""The worker's own settings, read once from the environment. The engine's options are in engine.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
class Variable:
    """One variable of the worker's own: its default as text, what is accepted, and what it means."""

    name: str
    default: str
    expected: str
    meaning: str
    parse: Callable[[str], Any]
    """From text to value. Raises ValueError for what is not accepted."""


def _count(least: int = 1, most: float = math.inf) -> tuple[str, Callable[[str], int]]:
    def parse(text: str) -> int:
        if not least <= (value := int(text)) <= most:
            raise ValueError(text)
        return value

    span = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    return f"a whole number {span}", parse


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def _milliseconds(text: str) -> float:
    if not 0 <= (value := float(text)) <= 10_000:
        raise ValueError(text)
    return value / 1000


def _level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise ValueError(text)
    return text.upper()


def _paths(text: str) -> frozenset[str]:
    paths = frozenset(text.replace(",", " ").split())
    if not all(map(is_plain_path, paths)):
        raise ValueError(text)
    return paths


def _variable(name: str, default: int | str, expected: tuple[str, Callable[[str], Any]], meaning: str) -> Variable:
    return Variable(name, str(default), expected[0], meaning, expected[1])


_A_TIME = ("a number of seconds above 0", _seconds)
_A_PAUSE = ("a number of milliseconds from 0 to 10000", _milliseconds)
_A_LEVEL = (f"one of {', '.join(LOG_LEVELS)}", _level)


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for: MAX_REQUEST_BYTES, MAX_JSON_DEPTH (levels) and MAX_N."""

    request_bytes: int = 20 * MIB
    json_depth: int = 100
    n: int = 128


VARIABLES = (
    _variable("MAX_CONCURRENCY", 300, _count(), "jobs handled at once"),
    _variable(
        "REQUEST_TIMEOUT_SECONDS", 10 * MINUTES, _A_TIME, "the longest silence of the engine in the middle of a request"
    ),
    _variable(
        "STARTUP_TIMEOUT_SECONDS",
        30 * MINUTES,
        _A_TIME,
        "the longest wait for the engine to become ready; a first start downloads 62 GB",
    ),
    _variable("SHUTDOWN_TIMEOUT_SECONDS", 2 * MINUTES, _A_TIME, "time for jobs in flight to finish once told to stop"),
    _variable("ENGINE_MAX_RESTARTS", 3, _count(least=0), "how often a dead engine is started again within the window"),
    _variable("ENGINE_RESTART_WINDOW_SECONDS", 10 * MINUTES, _A_TIME, "the time in which restarts are counted"),
    _variable("MAX_WAITING_JOBS", 1000, _count(least=0), "jobs that may wait while the engine restarts"),
    _variable(
        "MAX_REQUEST_BYTES",
        Limits.request_bytes,
        _count(),
        "the largest request body; RunPod itself takes 10 MB at /run and 20 MB at /runsync",
    ),
    _variable(
        "MAX_JSON_DEPTH",
        Limits.json_depth,
        _count(most=MOST_JSON_LEVELS),
        "how deep arrays and objects may nest in an input",
    ),
    _variable("MAX_N", Limits.n, _count(), "the most answers to one prompt (`n`); OpenAI's API takes up to 128"),
    _variable(
        "ALLOWED_ROUTES",
        "",
        ("plain paths such as /tokenize, separated by commas or spaces", _paths),
        "paths on the engine that are open to clients beside the usual ones",
    ),
    _variable(
        "STREAM_FLUSH_MS",
        100,
        _A_PAUSE,
        "the least time between two outputs of a stream while a hundred are running; with more streams longer, with "
        "fewer shorter, so that all together send at most 100,000 / STREAM_FLUSH_MS outputs a second; 0: no limit",
    ),
    _variable("LOCAL_API_KEY", "", ("text", str), "what clients of the API on this machine must show; empty: nothing"),
    _variable(
        "WAVERLESS_HEALTH_PORT", 8000, _count(most=65535), "the port of `GET /health`, served on Waverless alone"
    ),
    _variable("RUNPOD_LOG_LEVEL", "INFO", _A_LEVEL, "the least that is logged, in the SDK's words"),
    _variable("RUNPOD_DEBUG_LEVEL", "", _A_LEVEL, "the older name of RUNPOD_LOG_LEVEL, which wins"),
)


@dataclass(frozen=True)
class Settings:
    """What a user may set of the worker itself, by the names and meanings of VARIABLES. All times in seconds."""

    max_concurrency: int
    max_waiting_jobs: int
    request_timeout_seconds: float
    startup_timeout_seconds: float
    shutdown_timeout_seconds: float
    engine_max_restarts: int
    engine_restart_window_seconds: float
    limits: Limits
    allowed_routes: frozenset[str]
    stream_flush_seconds: float
    local_api_key: str | None
    waverless_health_port: int
    log_level: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; an absent or empty variable means its default.

        Raises ConfigurationError with every problem at once.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for variable in VARIABLES:
            text = environ.get(variable.name, "").strip() or variable.default
            try:
                values[variable.name] = variable.parse(text) if text else None
            except ValueError:
                problems.append(f"{variable.name}={text!r}: expected {variable.expected}")
        if problems:
            raise ConfigurationError(problems)
        log_level = environ.get("RUNPOD_LOG_LEVEL", "").strip() and values["RUNPOD_LOG_LEVEL"]
        return cls(
            max_concurrency=values["MAX_CONCURRENCY"],
            max_waiting_jobs=values["MAX_WAITING_JOBS"],
            request_timeout_seconds=values["REQUEST_TIMEOUT_SECONDS"],
            startup_timeout_seconds=values["STARTUP_TIMEOUT_SECONDS"],
            shutdown_timeout_seconds=values["SHUTDOWN_TIMEOUT_SECONDS"],
            engine_max_restarts=values["ENGINE_MAX_RESTARTS"],
            engine_restart_window_seconds=values["ENGINE_RESTART_WINDOW_SECONDS"],
            limits=Limits(
                request_bytes=values["MAX_REQUEST_BYTES"], json_depth=values["MAX_JSON_DEPTH"], n=values["MAX_N"]
            ),
            allowed_routes=values["ALLOWED_ROUTES"] or frozenset(),
            stream_flush_seconds=values["STREAM_FLUSH_MS"],
            local_api_key=values["LOCAL_API_KEY"],
            waverless_health_port=values["WAVERLESS_HEALTH_PORT"],
            log_level=log_level or values["RUNPOD_DEBUG_LEVEL"] or values["RUNPOD_LOG_LEVEL"],
        )
