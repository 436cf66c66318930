"""The soak: the worker between a bad platform and an engine that crashes every minute, and what became of each job.

The worker is the real one, in its own process with RunPod's SDK, and its log is read once a minute; platform and engine
are this repository's stand-ins, told to misbehave. Halfway through, the platform is down for five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.tasks import cancel
from local_runpod import Job, JobState, RawJson
from scripts.soak_ledger import (
    Ledger,
    RareReader,
    compare,
    jobs_on,
    metrics_page,
    objects_in,
    outcomes_of,
    report_words,
)
from scripts.worker_process import Platform, Worker, free_port, running_platform, running_worker
from sglang_engine.posix import is_alive

AT_ONCE = 40  # jobs in flight at any time
WARM_UP_SECONDS = 180.0  # of the same load, before memory and descriptors are counted for the first time
CRASH_SECONDS = 60.0
JOB_SECONDS = 180.0  # how long a client waits for a job once it is taken; others are looked up at the end
OUTAGE_SECONDS = 300.0
STALL_SECONDS = 70.0  # longer than the worker's own time-out for a post
IDLE_SECONDS = STALL_SECONDS + 10  # after this, nothing is in flight any more, and no connection is open
EXIT_SECONDS = 150.0  # longer than SHUTDOWN_TIMEOUT_SECONDS
MOST_GROWTH = 0.05
LAST_LINES = 20
FAULTS = ("lost", "answered twice")
NONSENSE = ("{}", "null", "[]", "[null]", '{"id": ""}', '[{"input": 1}]', "5")
WORDS = ("what-a-client-asks", "what-a-model-says")  # which belong into no log
ASKED, SAID = WORDS
HELLO = [{"role": "user", "content": ASKED}]
# As text, so that only the worker has to parse it.
NINETEEN_MEGABYTES = RawJson(
    json.dumps({"messages": HELLO, "script": {"answer": {"read": True}}, "numbers": list(range(100_000, 2_200_000))})
)


@dataclass
class Counts:
    """What became of the jobs."""

    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    taken: int = 0
    late: list[Job] = field(default_factory=list)
    """Jobs that their clients stopped waiting for."""
    crashes: int = 0
    platform_errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Resources:
    """What the worker uses while it is idle."""

    memory_mib: float
    descriptors: int

    @classmethod
    def of(cls, worker: Worker) -> Resources:
        """Resident memory and open file descriptors of the worker's process."""
        proc = Path(f"/proc/{worker.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list((proc / "fd").iterdir())))


def main() -> int:
    """Run for the minutes given; print the counts."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float, nargs="?", default=5.0)
    return asyncio.run(soak(parser.parse_args().minutes * 60))


async def soak(seconds: float) -> int:
    """One run. Returns the exit code."""
    metrics_port = free_port()
    environment = {
        "ENGINE_MAX_RESTARTS": "1000000",
        "ENGINE_RESTART_WINDOW_SECONDS": "30",
        "METRICS_PORT": str(metrics_port),
    }
    warm_up, counts = Counts(), Counts()
    reader = RareReader()
    engine = {"child": True, "scheduler": True}
    async with running_platform() as platform:
        ledger = Ledger(platform.queue)
        async with running_worker(
            platform, environment, engine=engine, stdout=reader.write_end, stderr=reader.write_end
        ) as worker:
            soaking = asyncio.create_task(soaked(platform, worker, warm_up, counts, seconds))
            ended = asyncio.create_task(worker.process.wait())
            await asyncio.wait({soaking, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await cancel(soaking)
                return told_of_the_end(ended.result(), objects_in(await reader.log()))
            before, after = await soaking
            page = await metrics_page(metrics_port)
            processes = [*worker.children(), *worker.engine_pids()]
            reader.hurry()
            worker.process.terminate()
            exit_code = await worker.exit_code(EXIT_SECONDS)
        log = await reader.log()
        left = sum(map(is_alive, processes))
        counts.late += warm_up.late
        counts.ends.update(end_of(job) for job in counts.late)
        counts.ends.update({end: warm_up.ends[end] for end in FAULTS})
    exit_code = report(counts, before, after, left, exit_code)
    exit_code = report_words(log, page, WORDS) or exit_code
    return compare(ledger, outcomes_of(objects_in(log)), jobs_on(page)) or exit_code


async def soaked(
    platform: Platform, worker: Worker, warm_up: Counts, counts: Counts, seconds: float
) -> tuple[Resources, Resources]:
    """The load of a run. Returns what the worker uses once it is warm, and at the end."""
    warming, soaking, away = (each / 60 for each in (WARM_UP_SECONDS, seconds, OUTAGE_SECONDS))
    print(f"warming up for {warming:g} minutes, soaking for {soaking:g}, an outage of {away:g} in between", flush=True)
    await platform.answer(NINETEEN_MEGABYTES, JOB_SECONDS)  # the first one starts what reads the others
    await disturbed_load(platform, worker, warm_up, WARM_UP_SECONDS)
    before = Resources.of(worker)
    outage = asyncio.create_task(an_outage(platform, counts, after_seconds=seconds / 2))
    try:
        await disturbed_load(platform, worker, counts, seconds + OUTAGE_SECONDS)
        await outage
    finally:
        await cancel(outage)
    return before, Resources.of(worker)


def told_of_the_end(exit_code: int, lines: list[dict[str, Any]]) -> int:
    """Print that the worker has ended by itself, and the end of its log. Returns 1."""
    print(f"the worker ended during the soak, with exit code {exit_code}; the end of its log:")
    for line in lines[-LAST_LINES:]:
        print(f"{line.get('time')} {line.get('level')} {line.get('message')}")
    return 1


async def disturbed_load(platform: Platform, worker: Worker, counts: Counts, seconds: float) -> None:
    """Load, crashes and platform errors for this long; return when the worker is idle again."""
    breaking = [
        asyncio.create_task(crash_the_engine(worker, counts)),
        asyncio.create_task(disturb_the_platform(platform, counts)),
    ]
    try:
        await load(platform, counts, seconds)
    finally:
        await cancel(*breaking)
    platform.faults.stalls.clear()
    platform.faults.refusals.clear()
    platform.faults.nonsense.clear()
    platform.faults.latency_seconds = 0.0
    await asyncio.sleep(IDLE_SECONDS)


async def an_outage(platform: Platform, counts: Counts, *, after_seconds: float) -> None:
    """Take the platform down for OUTAGE_SECONDS."""
    await asyncio.sleep(after_seconds)
    platform.faults.is_away = True
    await asyncio.sleep(OUTAGE_SECONDS)
    platform.faults.is_away = False
    counts.platform_errors["outage"] += 1


async def load(platform: Platform, counts: Counts, seconds: float) -> None:
    """Keep jobs in flight for this long; return when the last of them is over."""
    deadline = time.monotonic() + seconds
    clients = [client(platform, counts, deadline, random.Random(number)) for number in range(AT_ONCE)]
    await asyncio.gather(*clients)


async def client(platform: Platform, counts: Counts, deadline: float, rng: random.Random) -> None:
    """One client, which submits a job when its last one is over."""
    while time.monotonic() < deadline:
        kind = rng.choices(list(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
        job = platform.queue.submit(KINDS[kind][1](rng))
        counts.kinds[kind] += 1
        if kind == "cancelled":
            with suppress(TimeoutError):
                await job.finished(rng.uniform(0, 1.5))
            platform.queue.cancel(job)
        await job.taken()
        counts.taken += job.taken_at is not None
        with suppress(TimeoutError):
            await job.finished(JOB_SECONDS)
        await asyncio.sleep(rng.uniform(0.05, 0.5))  # time for a second answer to arrive, if there is one
        if job.state.is_final:
            counts.ends[end_of(job)] += 1
            platform.queue.forget(job)
        else:
            counts.late.append(job)


def streamed(rng: random.Random) -> Any:
    """A stream of up to a few seconds."""
    script = {"events": rng.randrange(1, 60), "pause": rng.uniform(0, 0.05), "text": f"{SAID} " * rng.randrange(1, 20)}
    return {"messages": HELLO, "stream": True, "script": script}


def short(rng: random.Random) -> Any:
    """A job that takes milliseconds, or a second or two."""
    return {"messages": HELLO, "script": {"pause": rng.choice([0, 0, 0.1, 1.5])}}


def bad(rng: random.Random) -> Any:
    """A job that fails: refused by the worker or the engine, or broken in mid-stream."""
    return rng.choice(
        [
            None,
            {"messages": ASKED},
            {"openai_route": "http://example.com/"},
            {"openai_route": "/flush_cache"},
            {"text": ASKED, "script": {"status": 400, "body": '{"detail": "no"}'}},
            {"text": ASKED, "stream": True, "script": {"then": rng.choice(["error", "half", "drop", "eof", "abort"])}},
        ]
    )


KINDS = {
    "streamed": (40, streamed),
    "short": (35, short),
    "bad": (12, bad),
    "of 19 MB": (0.5, lambda _: NINETEEN_MEGABYTES),
    "cancelled": (13, lambda rng: {**streamed(rng), "script": {"events": 200, "pause": 0.02}}),
}


def end_of(job: Job) -> str:
    """How a job ended, as the report puts it."""
    if job.answers > 1:
        return "answered twice"
    match job.state:
        case JobState.COMPLETED:
            return "answered"
        case JobState.CANCELLED:
            return "cancelled"
        case JobState.FAILED if job.error and '"message"' in job.error:
            return "failed with a reason"
    return "lost"


async def crash_the_engine(worker: Worker, counts: Counts) -> None:
    """Kill the engine, or its scheduler, once a minute."""
    while True:
        await asyncio.sleep(CRASH_SECONDS)
        pids = worker.engine_pids()
        if pids:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pids[0] if counts.crashes % 2 else pids[-1], signal.SIGKILL)
            counts.crashes += 1


async def disturb_the_platform(platform: Platform, counts: Counts) -> None:
    """Make the platform slow for a while, refuse some calls, and leave one unanswered now and then."""
    rng, faults = random.Random(0), platform.faults
    while True:
        await asyncio.sleep(rng.uniform(0.5, 2))
        faults.latency_seconds = rng.choice([0, 0, 0.03, 0.3])
        route = rng.choice(["job-stream", "job-stream", "job-done", "job-done", "job-take-batch", "job-stop"])
        if rng.random() < 0.05 and not any(faults.stalls.values()):
            faults.stalls[route].append(STALL_SECONDS)
            counts.platform_errors["time-out"] += 1
            continue
        if rng.random() < 0.1:
            faults.nonsense.append(rng.choice(NONSENSE))
            counts.platform_errors["nonsense"] += 1
        status = rng.choice([429, 500, 502, 503, 302, 307])
        if route != "job-take-batch" or status != 429 or rng.random() < 0.2:  # a 429 costs the worker 5 s
            faults.refusals[route].append(status)
            counts.platform_errors[str(status)] += 1


def report(counts: Counts, before: Resources, after: Resources, left: int, exit_code: int) -> int:
    """Print the counts. Returns 1 if a job was lost or answered twice, or something leaked."""
    growth = after.memory_mib / before.memory_mib - 1
    cancelled = counts.ends["cancelled"]
    rows = [
        ("jobs", f"{counts.kinds.total()} ({_listed(counts.kinds)})"),
        ("taken", str(counts.taken)),
        ("answered", str(counts.ends["answered"])),
        ("failed with a reason", str(counts.ends["failed with a reason"])),
        ("cancelled by the client", str(cancelled)),
        ("lost", str(counts.ends["lost"])),
        ("over, but late", str(len(counts.late) - counts.ends["lost"])),
        ("answered twice", str(counts.ends["answered twice"])),
        ("engine crashes", str(counts.crashes)),
        ("platform errors", _listed(counts.platform_errors)),
        ("memory", f"{before.memory_mib:.0f} MiB, then {after.memory_mib:.0f} MiB ({growth:+.1%})"),
        ("file descriptors", f"{before.descriptors}, then {after.descriptors}"),
        ("processes left", str(left)),
        ("exit code", str(exit_code)),
    ]
    for name, value in rows:
        print(f"{name:<24} {value}")
    leaked = growth > MOST_GROWTH or after.descriptors > before.descriptors + 10 or left or exit_code
    return 1 if any(counts.ends[fault] for fault in FAULTS) or leaked else 0


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    sys.exit(main())
