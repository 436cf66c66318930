"""Where the worker's HTTP server listens, and who may call it.

Imported before everything else (`gateway.http_server.early`), so it imports only small modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.settings import ConfigurationError, any_text, count, read, readable, variable
from common.variables import VARIABLES

# https://docs.runpod.io/serverless/load-balancing/overview: the port that RunPod's load balancer calls by default.
RUNPOD_PORT = 80
LOCAL_PORT = 8000

# `/ping` is RunPod's default; the others are SGLang's own health routes, which mean the same here.
HEALTH_PATHS = frozenset({"/health", "/ready", "/ping"})

_ON_RUNPOD = ("RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID", "RUNPOD_WEBHOOK_GET_JOB")
# Kubernetes sets this in each container.
_ON_A_PLATFORM = (*_ON_RUNPOD, "KUBERNETES_SERVICE_HOST")

# In the other modes these two are the engine's own options, so they are not in the worker's table of variables.
_ADDRESS = (
    variable("HOST", "", any_text(), "where the HTTP server listens"),
    variable("PORT", "", count(most=65535), "its port"),
)


@dataclass(frozen=True)
class HttpSettings:
    """The HTTP server's part of the worker's variables; `common.variables` says what each one means."""

    host: str
    port: int
    engine_port: int
    health_port: int
    health_path: str
    cors_origins: frozenset[str]
    shutdown_timeout_seconds: float
    failed_start_seconds: float

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, at_terminal: bool = False) -> HttpSettings:
        """Read the settings. Raises ConfigurationError with every problem at once.

        at_terminal: whether the log goes to a terminal. Who sits there reads why a start failed, so that nobody else
        has to be told, unless FAILED_START_SECONDS says so or a platform has set its variables.
        """
        settings = cls._read(environ, at_terminal)
        if settings.engine_port in (settings.port, settings.health_port):
            taken = "PORT" if settings.engine_port == settings.port else "PORT_HEALTH"
            raise ConfigurationError([f"ENGINE_PORT={settings.engine_port}: expected another port than {taken}"])
        return settings

    @classmethod
    def of_the_readable(cls, environ: Mapping[str, str], *, at_terminal: bool = False) -> HttpSettings:
        """The settings without what is wrong with them, to tell somebody."""
        return cls._read(readable((*_ADDRESS, *VARIABLES), environ), at_terminal)

    @classmethod
    def _read(cls, environ: Mapping[str, str], at_terminal: bool) -> HttpSettings:
        problems: list[str] = []
        values: dict[str, Any] = {}
        for variables in (_ADDRESS, VARIABLES):
            try:
                values |= read(variables, environ)
            except ConfigurationError as error:
                problems += error.problems
        if problems:
            raise ConfigurationError(problems)
        on_runpod = any(environ.get(name) for name in _ON_RUNPOD)
        is_watched = at_terminal and not any(environ.get(name) for name in (*_ON_A_PLATFORM, "FAILED_START_SECONDS"))
        port = values["PORT"] or (RUNPOD_PORT if on_runpod else LOCAL_PORT)
        return cls(
            host=values["HOST"] or ("0.0.0.0" if on_runpod else "127.0.0.1"),
            port=port,
            engine_port=values["ENGINE_PORT"],
            health_port=values["PORT_HEALTH"] or port,
            health_path=values["HEALTH_CHECK_PATH"],
            cors_origins=values["CORS_ORIGINS"] or frozenset(),
            shutdown_timeout_seconds=values["SHUTDOWN_TIMEOUT_SECONDS"],
            failed_start_seconds=0.0 if is_watched else values["FAILED_START_SECONDS"],
        )

    @property
    def health_paths(self) -> frozenset[str]:
        """The paths that answer health checks."""
        return HEALTH_PATHS | {self.health_path}

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where to listen: for everything first, then for health checks alone, if they have a port of their own."""
        ports = [self.port] if self.health_port == self.port else [self.port, self.health_port]
        return [(self.host, port) for port in ports]

    def engine_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment that the engine's plan reads: HOST and PORT are the engine's there."""
        return {**environ, "HOST": "127.0.0.1", "PORT": str(self.engine_port)}
