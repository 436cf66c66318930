"""The worker's own variables, in one table; SGLang's are in engine.py.

Each package reads its own part into a frozen dataclass (`gateway.settings`, `sglang_engine.settings`,
`serverless.settings`). They are all here because they are checked together, before anything starts, and because
`python engine.py --print`, the hints on misspelt names and docs/configuration.md cover all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.addresses import is_plain_path
from common.logs import log_level
from common.settings import (
    Parser,
    any_text,
    auto_or,
    concurrency,
    count,
    milliseconds,
    read,
    readable,
    seconds,
    seconds_or_none,
    switch,
    variable,
    word,
)

_HOST = re.compile(r"[0-9a-z_.:-]+")

MINUTES = 60
MIB = 1024 * 1024

# Python's own JSON parser gives up at about 1000 levels; anything deeper than this cannot be distinguished from a bomb.
MAX_JSON_LEVELS = 250


def _paths() -> Parser:
    def parse(names: str) -> frozenset[str]:
        paths = frozenset(names.replace(",", " ").split())
        if not all(map(is_plain_path, paths)):
            raise ValueError(names)
        return paths

    return "plain paths such as /tokenize, separated by commas or spaces", parse


def _origins() -> Parser:
    def parse(text: str) -> frozenset[str]:
        origins = frozenset(origin.strip().lower().rstrip("/") for origin in text.split(","))
        for origin in origins - {"*"}:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(text)
        return origins

    return "origins such as https://chat.example.com, separated by commas, or * for every page", parse


def _hosts() -> Parser:
    def parse(text: str) -> frozenset[str]:
        hosts = frozenset(host.strip().lower() for host in text.split(","))
        if not all(_HOST.fullmatch(host) for host in hosts):
            raise ValueError(text)
        return hosts

    return "host names or addresses without a port, separated by commas", parse


def _path() -> Parser:
    def parse(text: str) -> str:
        if text != "/" and not is_plain_path(text):
            raise ValueError(text)
        return text

    return "a plain path such as /ping", parse


def _introduction() -> Parser:
    def parse(path: str) -> dict[str, Any]:
        try:
            introduction = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError:
            raise ValueError(path) from None
        match introduction:
            case {"text": str(), "starters": [*starters]} if all(map(_is_starter, starters)):
                return dict(introduction)
        raise ValueError(path)

    return 'a JSON file of the form {"text": "…", "starters": [{"prompt": "…", "settings": {"tools": true}}]}', parse


def _is_starter(value: Any) -> bool:
    match value:
        case {"prompt": str(), **rest}:
            return isinstance(rest.get("settings", {}), dict)
    return False


VARIABLES = (
    variable(
        "AGENT",
        "false",
        switch(),
        "sets the engine up for coding agents: earlier reasoning stays in the prompt, and tool calls keep to their "
        "schema",
    ),
    variable(
        "MODE",
        "",
        word(("QUEUE", "HTTP")),
        "`queue`: jobs from a platform; `http`: an HTTP server, as with `--serve_http`; empty: what the command line "
        "and the platform's variables say",
    ),
    variable("ENGINE_PORT", 30000, count(most=65535), "the engine's port behind the HTTP server"),
    variable(
        "PORT_HEALTH",
        "",
        count(most=65535),
        "a second port of the HTTP server, for health checks alone; empty: they are on PORT",
    ),
    variable(
        "HEALTH_CHECK_PATH",
        "/ping",
        _path(),
        "a path for health checks of the HTTP server, besides /health, /ready and /ping",
    ),
    variable(
        "MAX_CONCURRENCY",
        "auto",
        concurrency(),
        "jobs handled at once; auto: what the engine can run, as it says itself, and a small reserve",
    ),
    variable(
        "REQUEST_TIMEOUT_SECONDS",
        10 * MINUTES,
        seconds(),
        "how long the engine may be silent in the middle of a request",
    ),
    variable(
        "STARTUP_TIMEOUT_SECONDS",
        30 * MINUTES,
        seconds(),
        "how long to wait for the engine to become ready; a first start downloads 62 GB",
    ),
    variable(
        "RUNPOD_INIT_TIMEOUT",
        "",
        seconds(),
        "read by RunPod: the seconds after which a worker that is not ready counts as unhealthy, 420 if it is not set; "
        "the worker warns at its start if that is too short",
    ),
    variable(
        "SHUTDOWN_TIMEOUT_SECONDS",
        2 * MINUTES,
        seconds(),
        "how long jobs in flight may take to finish once the worker is told to stop",
    ),
    variable(
        "FAILED_START_SECONDS",
        MINUTES,
        seconds_or_none(),
        "how long a worker that cannot start, for a cause that is the same on every host, takes jobs and fails them "
        "with the reason before it exits; 0: it exits at once",
    ),
    variable(
        "KERNEL_CACHE_DIR",
        "",
        any_text(),
        "where Triton, torch inductor, FlashInfer and DeepGEMM keep the kernels that they compile; empty: on the "
        "volume that has HF_HOME, if one is mounted there; off: where each of them does by itself",
    ),
    variable("ENGINE_MAX_RESTARTS", 3, count(least=0), "how often a dead engine is restarted within the window"),
    variable("ENGINE_RESTART_WINDOW_SECONDS", 10 * MINUTES, seconds(), "the time in which restarts are counted"),
    variable("MAX_WAITING_JOBS", 1000, count(least=0), "jobs that may wait while the engine restarts"),
    variable(
        "MAX_REQUEST_BYTES",
        20 * MIB,
        count(),
        "the largest request body; RunPod itself takes 10 MB at /run and 20 MB at /runsync",
    ),
    variable(
        "MAX_RESPONSE_BYTES",
        256 * MIB,
        count(),
        "the largest unstreamed answer from the engine, which is read completely before it is passed on",
    ),
    variable("MAX_JSON_DEPTH", 100, count(most=MAX_JSON_LEVELS), "how deep arrays and objects may nest in an input"),
    variable("MAX_N", 128, count(), "the most answers to one prompt (`n`); OpenAI's API takes up to 128"),
    variable("ALLOWED_ROUTES", "", _paths(), "paths on the engine that are open to clients besides the usual ones"),
    variable(
        "STREAM_FLUSH_MS",
        "auto",
        auto_or(milliseconds(most=10_000)),
        "the least time between two outputs of a stream; auto: none, unless the worker has no time left for more, and "
        "then as little as helps; a number: that time while a hundred streams are running, longer with more and "
        "shorter with fewer, so that all together send at most 100,000 / STREAM_FLUSH_MS outputs a second; 0: none",
    ),
    variable("LOCAL_API_KEY", "", any_text(), "the key that clients of the API on this machine must send; empty: none"),
    variable(
        "CORS_ORIGINS",
        "",
        _origins(),
        "web pages that may call the API on this machine, besides its own page",
    ),
    variable(
        "WEBHOOK_HOSTS",
        "",
        _hosts(),
        "the only hosts that the API on this machine posts finished jobs to, public or not; empty: any public one, and "
        "any at all while the API listens on loopback",
    ),
    variable(
        "PAGE_INTRODUCTION",
        "",
        _introduction(),
        "what the page of the API on this machine says about its model, and the questions that it offers; settings are "
        "`system`, `temperature`, `max-tokens`, `thinking` and `tools`. The tiny GLM brings its own",
    ),
    variable("WAVERLESS_HEALTH_PORT", 8000, count(most=65535), "the port of `GET /health`, served on Waverless only"),
    variable(
        "RUNPOD_REALTIME_PORT",
        "",
        count(least=0, most=65535),
        "serve the realtime API of RunPod's SDK on this port of all addresses, in place of taking jobs from the queue; "
        "empty or 0: no",
    ),
    variable("RUNPOD_REALTIME_CONCURRENCY", "", count(), "jobs of the realtime API at once; empty: as deployed"),
    variable(
        "LOG_FORMAT",
        "",
        word(("JSON", "TEXT")),
        "the form of the log: `json`, one object a line, or `text`; empty: JSON on a platform, text elsewhere",
    ),
    variable(
        "METRICS_PORT",
        "",
        count(most=65535),
        "the port on loopback of a queue worker's `GET /metrics`, for Prometheus; empty: none",
    ),
    variable("RUNPOD_LOG_LEVEL", "INFO", log_level(), "the lowest level that is logged, by the SDK's names"),
    variable("RUNPOD_DEBUG_LEVEL", "", log_level(), "the older name of RUNPOD_LOG_LEVEL, which wins"),
)

# What Waverless sets (WaveSpeed's platform; most of its providers set RunPod's twins too).
WAVERLESS_VARIABLES = (
    "WAVERLESS_ENDPOINT_ID",
    "WAVERLESS_API_KEY",
    "WAVERLESS_PING_INTERVAL",
    "WAVERLESS_LOG_LEVEL",
    "WAVERLESS_WEBHOOK_GET_JOB",
    "WAVERLESS_WEBHOOK_POST_OUTPUT",
    "WAVERLESS_WEBHOOK_POST_STREAM",
    "WAVERLESS_WEBHOOK_PING",
    "WAVERLESS_POD_ID",
    "WAVERLESS_POD_HOSTNAME",
    "WAVERLESS_PROJECT_ID",
    "WAVERLESS_REALTIME_PORT",
    "WAVERLESS_REALTIME_CONCURRENCY",
)


def read_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of all of them, by name. Raises ConfigurationError with every problem at once."""
    return read(VARIABLES, environ)


def without_wrong_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without those of these variables that have a wrong value; their defaults count instead."""
    return readable(VARIABLES, environ)
