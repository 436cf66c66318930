"""The settings of a worker, whatever its handler does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.settings import Concurrency
from common.variables import read_variables


@dataclass(frozen=True)
class WorkerSettings:
    """This package's part of the worker's variables; `common.variables` says what each one means."""

    max_concurrency: Concurrency
    shutdown_timeout_seconds: float
    failed_start_seconds: float
    local_api_key: str | None
    cors_origins: frozenset[str]
    webhook_hosts: frozenset[str]
    page_introduction: Mapping[str, Any] | None
    waverless_health_port: int
    log_level: str
    metrics_port: int | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> WorkerSettings:
        """Read the settings. Raises ConfigurationError with every problem at once."""
        values = read_variables(environ)
        log_level = environ.get("RUNPOD_LOG_LEVEL", "").strip() and values["RUNPOD_LOG_LEVEL"]
        return cls(
            max_concurrency=values["MAX_CONCURRENCY"],
            shutdown_timeout_seconds=values["SHUTDOWN_TIMEOUT_SECONDS"],
            failed_start_seconds=values["FAILED_START_SECONDS"],
            local_api_key=values["LOCAL_API_KEY"],
            cors_origins=values["CORS_ORIGINS"] or frozenset(),
            webhook_hosts=values["WEBHOOK_HOSTS"] or frozenset(),
            page_introduction=values["PAGE_INTRODUCTION"],
            waverless_health_port=values["WAVERLESS_HEALTH_PORT"],
            metrics_port=values["METRICS_PORT"],
            log_level=log_level or values["RUNPOD_DEBUG_LEVEL"] or values["RUNPOD_LOG_LEVEL"],
        )
