"""Run an example as a worker against the local RunPod, post its jobs, and compare the answers with those expected.

`python -m examples.check NAME [COMMAND…]`: the command starts the worker, with the platform's variables in its
environment; by default it is the example's handler in this Python. Exits with 1 if an answer is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from common.web_server import serving
from local_runpod import Job, JobQueue, JobState, create_app, worker_environment

FOLDER = Path(__file__).parent
ANSWER_SECONDS = 120.0
STOP_SECONDS = 30.0


async def check(name: str, command: list[str]) -> list[str]:
    """What is wrong with the worker's answers, a sentence each."""
    cases: list[dict[str, Any]] = json.loads((FOLDER / name / "jobs.json").read_text(encoding="utf-8"))
    queue = JobQueue()
    async with serving(create_app(queue, long_poll_seconds=1.0), "127.0.0.1", 0) as port:
        variables = worker_environment(f"http://127.0.0.1:{port}") | {
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # they look for a GPU
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "PYTHONPATH": str(FOLDER.parent),  # of the default command; an image has its own
        }
        worker = await asyncio.create_subprocess_exec(*command, env={**os.environ, **variables})
        ended = asyncio.create_task(worker.wait())
        try:
            problems = [problem for case in cases for problem in await _tried(queue, case, ended)]
        finally:
            if worker.returncode is None:
                worker.send_signal(signal.SIGTERM)
            exit_code = await asyncio.wait_for(ended, STOP_SECONDS)
            queue.close()
    return problems if exit_code == 0 else [*problems, f"the worker ended with code {exit_code}"]


async def _tried(queue: JobQueue, case: dict[str, Any], ended: asyncio.Task[int]) -> list[str]:
    if ended.done():
        return [f"{case['input']}: there is no worker any more"]
    job = queue.submit(case["input"])
    finished = asyncio.create_task(job.finished())
    await asyncio.wait({finished, ended}, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finished.cancel()
    seen = _answer(job)
    wrong = {key: seen.get(key) for key in case.keys() - {"input"} if seen.get(key) != case[key]}
    return [f"{case['input']}: expected {case[key]}, got {value} ({job.state})" for key, value in wrong.items()]


def _answer(job: Job) -> dict[str, Any]:
    """What a case may expect of a job."""
    answer: dict[str, Any] = {"output": job.output, "streamed": job.stream, "error": job.error}
    if job.state is JobState.COMPLETED and isinstance(job.output, dict) and "ranking" in job.output:
        answer["ranking"] = [each["index"] for each in job.output["ranking"]]
    return answer


def main() -> None:
    """The program."""
    name, *command = sys.argv[1:]
    problems = asyncio.run(check(name, command or [sys.executable, str(FOLDER / name / "handler.py")]))
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{name}: every answer is as expected")


if __name__ == "__main__":
    main()
