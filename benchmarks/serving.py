"""SGLang's own benchmark, `sglang.bench_serving`, on the tiny GLM: straight at SGLang and through the worker.

Each way through the worker stands beside the SGLang that it leads to: API mode and plain HTTP are two workers, one
after the other, each with an engine of its own. Prompts are random, of other tokens in each run, so that no run finds
the prefixes of another in the cache.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import MeasurementError
from benchmarks.report import Table
from embedded.environment import MODEL_FOLDER, engine_environment
from scripts.worker_process import (
    REPOSITORY,
    WorkerError,
    clean_environment,
    free_port,
    running_http_worker,
    start_worker,
    until_api_is_ready,
)

START_SECONDS, RUN_SECONDS = 180.0, 120.0
STAND_IN = REPOSITORY / "benchmarks" / "stand_in"
INPUT_TOKENS, OUTPUT_TOKENS = 64, 32


@dataclass(frozen=True)
class Load:
    """So many requests, as many at once."""

    requests: int
    at_once: int


LOADS = (Load(32, 4), Load(64, 16))
WARMS_UP = Load(8, 4)

# What the benchmark prints and what its file calls it.
SHOWN = {
    "Request throughput (req/s)": "request_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Median E2E Latency (ms)": "median_e2e_latency_ms",
    "P99 E2E Latency (ms)": "p99_e2e_latency_ms",
    "Median TTFT (ms)": "median_ttft_ms",
    "P99 TTFT (ms)": "p99_ttft_ms",
    "Median TPOT (ms)": "median_tpot_ms",
    "Median ITL (ms)": "median_itl_ms",
    "P95 ITL (ms)": "p95_itl_ms",
}


@dataclass(frozen=True)
class Served:
    """What one run of the benchmark came to, under its own names; times in milliseconds."""

    at_once: int
    figures: dict[str, float]


@asynccontextmanager
async def _api_mode() -> AsyncGenerator[tuple[str, str], None]:
    """Where its engine and its OpenAI API listen."""
    port = free_port()
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(None, engine_environment({}), arguments=flags)
    try:
        await until_api_is_ready(f"http://127.0.0.1:{port}", worker, START_SECONDS)
        yield worker.engine_url, f"http://127.0.0.1:{port}/openai"
    finally:
        await worker.stop()


@asynccontextmanager
async def _plain_http() -> AsyncGenerator[tuple[str, str], None]:
    async with running_http_worker(engine_environment({}), start_seconds=START_SECONDS) as worker:
        yield worker.engine_url, worker.http_url


WAYS: dict[str, Callable[[], AbstractAsyncContextManager[tuple[str, str]]]] = {
    "API mode": _api_mode,
    "plain HTTP": _plain_http,
}


async def serving() -> Table:
    """SGLang's own benchmark on the tiny GLM: straight at SGLang, through API mode, and over plain HTTP."""
    if not MODEL_FOLDER.exists():
        raise MeasurementError("there is no tiny GLM yet: `.venv/bin/python -m embedded` makes it")
    columns: dict[str, list[Served]] = {}
    seeds = itertools.count(1)
    try:
        for name, start in WAYS.items():
            async with start() as (engine_url, url):
                for warm in (engine_url, url):
                    await _run(warm, WARMS_UP, next(seeds))
                for load in LOADS:
                    for column, place in ((f"SGLang beside {name}", engine_url), (name, url)):
                        columns.setdefault(column, []).append(await _run(place, load, next(seeds)))
    except WorkerError as error:
        raise MeasurementError(f"the worker did not start: {str(error)[-500:]}") from None
    rows = [
        (str(load.at_once), shown, *(f"{of_way[number].figures[key]:,.1f}" for of_way in columns.values()))
        for number, load in enumerate(LOADS)
        for shown, key in SHOWN.items()
    ]
    results = [(column, served) for column, of_way in columns.items() for served in of_way]
    return Table(("at once", "", *columns), rows, results)


async def _run(url: str, load: Load, seed: int) -> Served:
    """Run the benchmark once. Raises MeasurementError if it fails, or any request does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.jsonl"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang-oai-chat", "--base-url", url),
            *("--model", str(MODEL_FOLDER), "--served-model-name", "glm-4.7-flash"),
            *("--dataset-name", "random-ids", "--random-range-ratio", "1.0", "--seed", str(seed)),
            *("--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)),
            *("--num-prompts", str(load.requests), "--max-concurrency", str(load.at_once)),
            *("--ready-check-timeout-sec", "0", "--disable-tqdm", "--output-file", str(file)),
            env=engine_environment(clean_environment() | {"PYTHONPATH": str(STAND_IN)}),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await asyncio.wait_for(process.communicate(), RUN_SECONDS)
        except TimeoutError:
            raise MeasurementError(f"SGLang's benchmark took longer than {RUN_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not file.exists():
            raise MeasurementError(f"SGLang's benchmark failed: {errors.decode(errors='replace').strip()[-500:]}")
        return served_of(json.loads(file.read_text(encoding="utf-8")), load)


def served_of(result: dict[str, Any], load: Load) -> Served:
    """The figures of a result file's line. Raises MeasurementError if a request of the load went wrong."""
    if result["completed"] != load.requests:
        raise MeasurementError(f"{load.requests - result['completed']} of {load.requests} requests went wrong")
    return Served(load.at_once, {key: float(result[key]) for key in SHOWN.values()})
