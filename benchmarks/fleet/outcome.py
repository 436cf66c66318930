"""What became of the jobs and what the workers cost, in a run or a simulation: figures, tables, plots."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.tables import markdown, percentile_95


@dataclass(eq=False)
class Answered:
    """One job. Times in seconds from the beginning."""

    submitted: float
    tokens: int
    worker: str = ""
    taken: float = 0.0
    first: float = 0.0
    finished: float = 0.0


@dataclass(eq=False)
class WorkerLife:
    """One worker: when it was started, ready and gone. Times in seconds from the beginning; paid from start to end."""

    name: str
    started: float
    ready: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Outcome:
    """All of them, and when the last worker that was not to stay had gone."""

    jobs: Sequence[Answered]
    workers: Sequence[WorkerLife]
    ended: float
    answered: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        """Count the jobs of each worker."""
        object.__setattr__(self, "answered", Counter(job.worker for job in self.jobs))

    @property
    def makespan(self) -> float:
        """From the first job's coming to the last one's end."""
        return max(job.finished for job in self.jobs) - min(job.submitted for job in self.jobs)

    @property
    def gpu_seconds(self) -> float:
        """What is paid, of all workers."""
        return sum((self.ended if life.ended is None else life.ended) - life.started for life in self.workers)

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(job.tokens for job in self.jobs)

    def waits(self) -> list[float]:
        """From each job's coming to its being taken."""
        return [job.taken - job.submitted for job in self.jobs]

    def firsts(self) -> list[float]:
        """From each job's coming to its first token."""
        return [job.first - job.submitted for job in self.jobs]

    def firsts_of_taken(self) -> list[float]:
        """From each job's being taken to its first token."""
        return [job.first - job.taken for job in self.jobs]

    def price(self, dollars_an_hour: float) -> float:
        """Dollars for a million tokens of answers."""
        return self.gpu_seconds / 3600 * dollars_an_hour / self.tokens * 1e6

    def most_workers(self) -> int:
        """How many there were at once, at most."""
        changes = [(life.started, 1) for life in self.workers]
        changes += [(life.ended, -1) for life in self.workers if life.ended is not None]
        running = most = 0
        for _, change in sorted(changes):
            running += change
            most = max(most, running)
        return most


SUMMARY = (
    "last job ends",
    "waits, p50",
    "p95",
    "first token, p50",
    "p95",
    "once taken, p95",
    "workers",
    "GPU seconds",
    "tokens/s",
)


def summary(outcome: Outcome) -> tuple[str, ...]:
    """One row of figures, under SUMMARY."""
    waits, firsts = outcome.waits(), outcome.firsts()
    return (
        f"{outcome.makespan:.1f} s",
        f"{statistics.median(waits):.2f} s",
        f"{percentile_95(waits):.2f} s",
        f"{statistics.median(firsts):.2f} s",
        f"{percentile_95(firsts):.2f} s",
        f"{percentile_95(outcome.firsts_of_taken()):.2f} s",
        str(outcome.most_workers()),
        f"{outcome.gpu_seconds:,.0f}",
        f"{outcome.tokens / outcome.makespan:,.0f}",
    )


def by_worker(outcome: Outcome) -> str:
    """Who answered what: a table in Markdown."""
    rows = []
    for life in outcome.workers:
        answered, ended = outcome.answered[life.name], outcome.ended if life.ended is None else life.ended
        rows.append(
            (
                life.name,
                f"{life.started:.1f} s",
                "never" if life.ready is None else f"{life.ready:.1f} s",
                f"{ended:.1f} s",
                str(answered),
                f"{answered / len(outcome.jobs):.0%}",
                f"{ended - life.started:.1f}",
            )
        )
    return markdown(("worker", "started", "ready", "gone", "jobs", "share", "GPU seconds"), rows)


def plot(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw, for each outcome, the jobs that wait and those that each worker has, over time."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(
        len(outcomes),
        1,
        figsize=(8, 2.6 * len(outcomes)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes, (name, outcome) in zip(rows[:, 0], outcomes.items(), strict=True):
        end = max(other.ended for other in outcomes.values())
        times = [end * step / 400 for step in range(401)]
        names = [life.name for life in outcome.workers]
        held = {
            worker: [
                sum(job.worker == worker and job.taken <= time < job.finished for job in outcome.jobs) for time in times
            ]
            for worker in names
        }
        queued = [sum(job.submitted <= time < job.taken for job in outcome.jobs) for time in times]
        axes.stackplot(times, *held.values(), labels=names)
        axes.plot(times, queued, color="black", linewidth=1, label="in the queue")
        axes.set(ylabel="jobs", title=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper right")
    rows[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=90)
    plt.close(figure)
