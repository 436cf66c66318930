"""The settings for requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.variables import read_variables


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for: MAX_REQUEST_BYTES, MAX_JSON_DEPTH (levels) and MAX_N."""

    request_bytes: int
    json_depth: int
    n: int


@dataclass(frozen=True)
class GatewaySettings:
    """The gateway's part of the worker's variables; `common.variables` says what each one means."""

    limits: Limits
    allowed_routes: frozenset[str]
    stream_flush_seconds: float | None
    """None: as the load asks for (`auto`)."""
    request_timeout_seconds: float
    max_response_bytes: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> GatewaySettings:
        """Read the settings. Raises ConfigurationError with every problem at once."""
        values = read_variables(environ)
        return cls(
            limits=Limits(
                request_bytes=values["MAX_REQUEST_BYTES"], json_depth=values["MAX_JSON_DEPTH"], n=values["MAX_N"]
            ),
            allowed_routes=values["ALLOWED_ROUTES"] or frozenset(),
            stream_flush_seconds=values["STREAM_FLUSH_MS"],
            request_timeout_seconds=values["REQUEST_TIMEOUT_SECONDS"],
            max_response_bytes=values["MAX_RESPONSE_BYTES"],
        )


DEFAULT_LIMITS = GatewaySettings.from_environ({}).limits
