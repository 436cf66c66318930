"""Turning a job's input into a request: small inputs are checked at once, large ones in a separate process."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

from common.errors import JobError
from common.helper_process import HelperError, HelperProcess
from common.large_json import LargeJson
from gateway.request import UpstreamRequest, build_request, path_of, unstreamed
from gateway.settings import GatewaySettings, Limits

log = logging.getLogger("worker.gateway")


class Intake:
    """Turns inputs into requests, for one model on one platform."""

    def __init__(
        self, helper: HelperProcess, settings: GatewaySettings, *, served_model_name: str, can_stream: bool = True
    ) -> None:
        """can_stream: if the platform takes no streams, a job that asks for one is answered unstreamed."""
        self._helper = helper
        self._rules: dict[str, Any] = {
            "served_model_name": served_model_name,
            "limits": settings.limits,
            "allowed_routes": settings.allowed_routes,
        }
        self._can_stream = can_stream
        self._unstreamed_jobs = itertools.count()

    async def request_of(self, job_input: Any) -> UpstreamRequest:
        """The request in an input. Raises JobError as `build_request` does."""
        if not isinstance(job_input, LargeJson):
            request = build_request(job_input, **self._rules)
            wants_stream = request.stream
            request = request if self._can_stream or not wants_stream else unstreamed(request)
        else:
            try:
                wants_stream, request = await self._helper.run(
                    build_large, job_input.text, can_stream=self._can_stream, **self._rules
                )
            except HelperError as error:
                log.error("a request of %d bytes could not be checked: %s", len(job_input.text), error)
                raise JobError("the request is too large for this worker to check") from None
        if wants_stream and not self._can_stream and not next(self._unstreamed_jobs):
            log.warning("this platform takes no streams: jobs with `stream: true` are answered unstreamed")
        return request


def build_large(
    text: bytes, *, served_model_name: str, limits: Limits, allowed_routes: frozenset[str], can_stream: bool
) -> Iterator[tuple[bool, UpstreamRequest]]:
    """`build_request` as a task for `HelperProcess`: whether a stream is wanted, and the request."""
    request = build_request(
        json.loads(text), served_model_name=served_model_name, limits=limits, allowed_routes=allowed_routes
    )
    yield request.stream, request if can_stream or not request.stream else unstreamed(request)


def path_asked_for(job_input: Any) -> str | None:
    """The path on the engine that an input asks for, large or not; None if it asks for none."""
    return path_of(job_input.outline if isinstance(job_input, LargeJson) else job_input)
