"""Where the microseconds of one event go: a sampling profile of a busy worker, summed up by owner of the code."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import Result, Worker, load

# The first of these in a sample's stack, from the innermost frame outwards, owns the sample. The connections
# (common/http1.py) are the engine's and the platform's: who called them owns them.
OWNERS = {
    "posts to the platform": ("serverless/posting.py", "serverless/runpod.py", "serverless/reporting.py", "aiohttp/"),
    "reading and framing the engine's events": (
        "sglang_engine/transport.py",
        "gateway/sse.py",
        "gateway/response.py",
    ),
    "starting the request (httpx)": ("httpx/",),
    "the job's input, checked and rewritten": (
        "gateway/request.py",
        "serverless/tolerant_json.py",
        "gateway/routes.py",
    ),
    "the rest of the handler and the job loop": (
        "handler.py",
        "gateway/deliver.py",
        "serverless/",
        "sglang_engine/",
        "runpod/",
        "logging/",
    ),
}
CONNECTIONS = "common/http1.py"
ARRIVING = "what arrives on a connection, parsed as HTTP"  # called by the event loop
THE_LOOP = "the event loop itself, and the system calls under it"
SAMPLES_A_SECOND = 100  # the process stands still for each, or stacks would be torn


async def budget(worker: Worker, streams: int, events: int, seconds: int = 8) -> tuple[Result, dict[str, float]]:
    """Load the worker under py-spy for this long; returns the last load, and each owner's share of the CPU time.

    Raises PermissionError if py-spy may not inspect processes.
    """
    await load(worker, streams, events)
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        profiler = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("py-spy")), "record", "--format", "raw"),
            *("--rate", str(SAMPLES_A_SECOND), "--duration", str(seconds), "--output", str(samples)),
            *("--pid", str(worker.process.pid)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        finished = asyncio.create_task(profiler.communicate())
        while not finished.done():
            result = await load(worker, streams, events)
        _, said = await finished
        if profiler.returncode:
            raise PermissionError(said.decode(errors="replace").strip().splitlines()[-1])
        return result, shares(samples.read_text(encoding="utf-8").splitlines())


def shares(samples: Iterable[str]) -> dict[str, float]:
    """Each owner's share of the main thread's samples: lines of `outermost;…;innermost count`."""
    counts: Counter[str] = Counter()
    for sample in samples:
        stack, _, count = sample.rpartition(" ")
        if "(handler.py" in stack:  # not the resolver's thread, which waits
            counts[owner(stack.split(";"))] += int(count)
    total = counts.total()
    return {name: count / total for name, count in counts.most_common()}


def owner(frames: list[str]) -> str:
    """The owner of the innermost frame that has one."""
    is_connection = False
    for frame in reversed(frames):
        place = frame.rpartition("(")[2]
        if place.startswith("serverless/modes.py"):
            break
        is_connection = is_connection or place.startswith(CONNECTIONS)
        for name, files in OWNERS.items():
            if place.startswith(files):
                return name
    return ARRIVING if is_connection else THE_LOOP
