"""What the worker counts, for `GET /metrics` and the line of each minute.

Counters, gauges and histograms of plain numbers, each with its labels; `common.metrics_page` writes them as Prometheus
reads them. Counting costs a dictionary access, takes no lock (everything counts on the event loop's thread), and needs
no import of prometheus_client, which takes 0.1 s.

Names follow https://prometheus.io/docs/practices/naming/ and, where it has a term, OpenTelemetry's GenAI conventions:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# From milliseconds to minutes; the first and the last are those of OpenTelemetry's metrics of durations.
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

Labels = tuple[str, ...]


@dataclass(eq=False)
class _Number:
    """A number for each combination of labels."""

    name: str
    help: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, *labels: str, by: float = 1) -> None:
        """One more, or as many as given."""
        self.values[labels] = self.values.get(labels, 0) + by


class Counter(_Number):
    """A number of things that have happened; it only grows. `name` is without Prometheus' `_total`."""

    def total(self, *, of: Callable[[Labels], bool] = lambda _: True) -> float:
        """The sum over the labels that are asked for."""
        return sum(value for labels, value in self.values.items() if of(labels))


class Gauge(_Number):
    """A number that goes up and down."""

    def set(self, value: float, *labels: str) -> None:
        """What it is now."""
        self.values[labels] = value


@dataclass
class Distribution:
    """How many observations fell below each bound of a histogram but not below the one before, and their sum."""

    counts: list[int]
    sum: float = 0.0


@dataclass(eq=False)
class Histogram:
    """How often a number had which size. bounds: upper limits, in the unit that the name ends with."""

    name: str
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = SECONDS
    values: dict[Labels, Distribution] = field(default_factory=dict)

    def observe(self, value: float, *labels: str) -> None:
        """Count one observation."""
        distribution = self.values.get(labels)
        if distribution is None:
            distribution = self.values[labels] = Distribution([0] * (len(self.bounds) + 1))
        distribution.counts[bisect_left(self.bounds, value)] += 1
        distribution.sum += value


Meter = Counter | Gauge | Histogram

JOBS = Counter("worker_jobs", "Jobs that have ended, by how they ended and what they asked for.", ("outcome", "route"))
IN_FLIGHT = Gauge("worker_jobs_in_flight", "Jobs taken and not yet ended.", values={(): 0})
WAITING = Gauge("worker_jobs_waiting", "Jobs in flight that wait for the engine, or for their turn.", values={(): 0})
REPLAYS = Counter("worker_jobs_replayed", "Jobs that were sent again after their engine died.", values={(): 0})
WAIT_SECONDS = Histogram("worker_job_wait_seconds", "How long jobs waited for the engine, and for their turn.")
FIRST_TOKEN_SECONDS = Histogram(
    "gen_ai_server_time_to_first_token_seconds", "From a streamed job's start to the first event of its answer."
)
OUTPUT_GAP_SECONDS = Histogram(
    "worker_time_between_outputs_seconds", "From one output of a stream to the next; an output has one token or more."
)
DURATION_SECONDS = Histogram(
    "gen_ai_server_request_duration_seconds", "From a job's start to its end.", ("gen_ai_operation_name",)
)
TOKENS = Counter(
    "worker_tokens",
    "Tokens of ended jobs, where the engine says them: input, input_cached (a part of it), output, output_reasoning "
    "(a part of it).",
    ("gen_ai_token_type",),
)
PLATFORM_CALLS = Counter(
    "worker_platform_calls",
    "Calls to the platform: take (a poll for jobs), stop (a poll for jobs to cancel), output, progress, result. The "
    "status is ok, the HTTP status of a refusal, or none if there was no answer.",
    ("kind", "status"),
)
PLATFORM_RETRIES = Counter(
    "worker_platform_retries",
    "Outputs, results and reports of progress that were sent once more.",
    ("kind",),
    {(kind,): 0 for kind in ("output", "progress", "result")},
)
ENGINE_STATE = Gauge("worker_engine_state", "1 for the state that the engine is in, 0 for the others.", ("state",))
ENGINE_SINCE = Gauge("worker_engine_state_since_timestamp_seconds", "Since when it is in that state.")
# Only for `/health` and the page: it lasts seconds, which no scraper sees.
ENGINE_PHASE = Gauge(
    "worker_engine_start_phase", "1 for the phase that the engine's start is in, 0 for the others.", ("phase",)
)
ENGINE_RESTARTS = Counter(
    "worker_engine_restarts",
    "Restarts of the engine, by what ended it.",
    ("cause",),
    # What usually ends an engine that has run. A series that begins with 1 has not grown, as far as Prometheus knows.
    {(cause,): 0 for cause in ("engine", "gpu", "gpu_memory", "hang")},
)
START_PHASE_SECONDS = Gauge("worker_start_phase_seconds", "How long each phase of the last start took.", ("phase",))
LOOP_LAG_SECONDS = Histogram(
    "worker_event_loop_lag_seconds", "By how much later than asked the event loop ran something."
)
CAPACITY = Gauge("worker_capacity_jobs", "How many jobs this worker takes at once.")
CAPACITY_LIMIT = Gauge("worker_capacity_limit", "1 for what limits the capacity at present.", ("limit",))

METERS: list[Meter] = [
    JOBS,
    IN_FLIGHT,
    WAITING,
    REPLAYS,
    WAIT_SECONDS,
    FIRST_TOKEN_SECONDS,
    OUTPUT_GAP_SECONDS,
    DURATION_SECONDS,
    TOKENS,
    PLATFORM_CALLS,
    PLATFORM_RETRIES,
    ENGINE_STATE,
    ENGINE_SINCE,
    ENGINE_RESTARTS,
    START_PHASE_SECONDS,
    LOOP_LAG_SECONDS,
    CAPACITY,
    CAPACITY_LIMIT,
]


def set_one(gauge: Gauge, label: str, labels: Iterable[str]) -> None:
    """Set a gauge with one label to 1 for this value of it, and to 0 for the others."""
    for other in labels:
        gauge.set(other == label, other)


def only_label(gauge: Gauge) -> str | None:
    """The label for which such a gauge is 1; None if there is none."""
    return next((labels[0] for labels, value in gauge.values.items() if value), None)
