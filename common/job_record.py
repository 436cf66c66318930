"""What is known of a job, from its start to its end: one line of the log, and what the meters count.

Whoever runs jobs begins a record and ends it; whoever works on the job adds what it learns, wherever that is:
`current()` is the record of the running task. So the line, the meters and the minute's line cannot disagree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common import logs, meters

log = logging.getLogger("worker.jobs")


class Outcome(StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Its client, or the platform, wanted it no more."""
    UNDELIVERED = "undelivered"
    """It was answered, but the platform did not take the answer."""


# The members of a job's line, in this order, besides those of every line.
FIELDS = (
    "outcome",
    "code",
    "route",
    "streamed",
    "replayed",
    "wait_seconds",
    "first_token_seconds",
    "total_seconds",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "outputs",
    "bytes",
    "finish_reason",
)

# The values of the label `route`, and what OpenTelemetry calls such an operation. Any other path is `other`: clients
# choose paths below /v1/, and each would be a series of its own.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/encode": "embeddings",
    "/v1/models": "other",
    "/v1/rerank": "other",
    "/v1/score": "other",
    "/classify": "other",
    "/tokenize": "other",
    "/detokenize": "other",
}
OTHER, NO_ROUTE = "other", "none"


@dataclass(eq=False, slots=True)
class JobRecord:
    """One job. None stands for what is not known; times are in seconds since the job was taken."""

    job_id: str
    outcome: Outcome | None = None
    code: int | None = None
    """An HTTP status: 200 if it completed, that of its error if it failed."""
    error_type: str | None = None
    route: str | None = None
    """The path on the engine, once it is known to be open to clients."""
    streamed: bool | None = None
    replayed: bool = False
    """Whether it was sent to the engine again after the engine died."""
    wait_seconds: float | None = None
    """How long it waited for the engine to be ready, and over plain HTTP for its turn."""
    first_token_seconds: float | None = None
    """When the first event of a streamed answer came."""
    total_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    outputs: int = 0
    """How many outputs were posted and taken; the result does not count."""
    bytes: int | None = None
    """The size of the answer, as the engine sent it."""
    finish_reason: str | None = None
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, job_id: str) -> JobRecord:
        """The record of a job that starts now. `end` it."""
        meters.IN_FLIGHT.add()
        return cls(job_id)

    @contextmanager
    def in_context(self) -> Generator[None, None, None]:
        """Within this context this is the current record, and every line of the log carries the job's id."""
        record, request_id = _current.set(self), logs.request_id.set(self.job_id)
        try:
            yield
        finally:
            _current.reset(record)
            logs.request_id.reset(request_id)

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Count the time within this context as waiting for the engine."""
        began = time.monotonic()
        meters.WAITING.add()
        try:
            yield
        finally:
            meters.WAITING.add(by=-1)
            self.wait_seconds = (self.wait_seconds or 0.0) + time.monotonic() - began

    def end(self, outcome: Outcome, code: int | None = None) -> None:
        """Note how the job ended: log its line and count it. Only the first call counts. code: see above."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self.code = self.code if code is None else code
        self.total_seconds = time.monotonic() - self.began
        _count(self)
        for observe in observers:
            observe(self)
        level = logging.WARNING if outcome in (Outcome.FAILED, Outcome.UNDELIVERED) else logging.INFO
        log.log(level, "%s", self.sentence(), extra={"job_id": self.job_id, "fields": self.fields()})

    def fields(self) -> dict[str, Any]:
        """The members of its line; seconds with microseconds, which is as exact as the clock."""
        known = {name: getattr(self, name) for name in FIELDS}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in known.items()}

    def sentence(self) -> str:
        """The same for people, without what is not known."""
        how = "" if self.streamed is None else ", streamed" if self.streamed else ", not streamed"
        parts = [
            f"{self.route or 'no route'}{how}{', sent again' if self.replayed else ''}",
            f"waited {self.wait_seconds:.2f} s" if self.wait_seconds is not None else "",
            f"first token {self.first_token_seconds:.2f} s" if self.first_token_seconds is not None else "",
            f"total {self.total_seconds or 0:.2f} s",
            self._tokens(),
            self.finish_reason or "",
        ]
        known = (
            " ".join(str(word) for word in (self.code, self.error_type) if word)
            if self.outcome is Outcome.FAILED
            else ""
        )
        error = f" with {known}" if known else ""
        return f"job {self.job_id}: {self.outcome}{error}; {', '.join(filter(None, parts))}"

    def _tokens(self) -> str:
        if self.prompt_tokens is None and self.completion_tokens is None:
            return ""
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens is not None else ""
        words = ["?" if n is None else str(n) for n in (self.prompt_tokens, self.completion_tokens)]
        return f"{words[0]} tokens in{cached}, {words[1]} out"


_current: ContextVar[JobRecord | None] = ContextVar("job_record", default=None)

observers: list[Callable[[JobRecord], None]] = []
"""Called with each record that ends."""


def current() -> JobRecord:
    """The record of the job that the running task works on; a record that nobody reads if there is none."""
    return _current.get() or JobRecord("")


def _count(record: JobRecord) -> None:
    meters.IN_FLIGHT.add(by=-1)
    operation = NO_ROUTE if record.route is None else OPERATIONS.get(record.route, OTHER)
    route = NO_ROUTE if record.route is None else record.route if record.route in OPERATIONS else OTHER
    outcome = record.outcome or ""
    if (outcome, route) not in meters.JOBS.values:
        for other in Outcome:  # a series that begins with 1 has not grown, as far as Prometheus knows
            meters.JOBS.add(other, route, by=0)
    meters.JOBS.add(outcome, route)
    meters.DURATION_SECONDS.observe(record.total_seconds or 0.0, operation)
    if record.replayed:
        meters.REPLAYS.add()
    if record.wait_seconds is not None:
        meters.WAIT_SECONDS.observe(record.wait_seconds)
    if record.first_token_seconds is not None:
        meters.FIRST_TOKEN_SECONDS.observe(record.first_token_seconds)
    for kind, tokens in (
        ("input", record.prompt_tokens),
        ("input_cached", record.cached_tokens),
        ("output", record.completion_tokens),
        ("output_reasoning", record.reasoning_tokens),
    ):
        if tokens is not None:
            meters.TOKENS.add(kind, by=tokens)
