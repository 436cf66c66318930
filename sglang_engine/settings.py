"""The settings for the engine's life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.variables import read_variables


@dataclass(frozen=True)
class EngineSettings:
    """The engine's part of the worker's variables; `common.variables` says what each one means."""

    request_timeout_seconds: float
    startup_timeout_seconds: float
    max_restarts: int
    restart_window_seconds: float
    max_waiting_jobs: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> EngineSettings:
        """Read the settings. Raises ConfigurationError with every problem at once."""
        values = read_variables(environ)
        return cls(
            request_timeout_seconds=values["REQUEST_TIMEOUT_SECONDS"],
            startup_timeout_seconds=values["STARTUP_TIMEOUT_SECONDS"],
            max_restarts=values["ENGINE_MAX_RESTARTS"],
            restart_window_seconds=values["ENGINE_RESTART_WINDOW_SECONDS"],
            max_waiting_jobs=values["MAX_WAITING_JOBS"],
        )
