"""The worker as users run it: `python handler.py` in its own process, against the local RunPod.

For the tests, the soak, the notebook's run and the benchmarks. By default the engine is tests/scripted_engine.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from common.web_server import serving
from local_runpod import Faults, Job, JobQueue, JobState, create_app, worker_environment
from sglang_engine.posix import group_members

REPOSITORY = Path(__file__).parents[1]
SCRIPTED_ENGINE = REPOSITORY / "tests" / "scripted_engine"
_SCRATCH = tempfile.TemporaryDirectory(prefix="worker-process-")
atexit.register(_SCRATCH.cleanup)
_held_ports: deque[socket.socket] = deque()
HELD_PORTS = 10  # more than the servers that are started at one time
ANSWER_SECONDS = 90.0  # far longer than anything here takes, on a busy machine too


@atexit.register
def _let_go_of_ports() -> None:
    while _held_ports:
        _held_ports.pop().close()


class WorkerError(Exception):
    """The worker did not start properly; the text is its log."""


@dataclass
class Platform:
    """A running local RunPod, with access to its queue."""

    queue: JobQueue
    faults: Faults
    base_url: str
    app: Any = None

    async def answer(self, job_input: Any, timeout_seconds: float = ANSWER_SECONDS) -> Job:
        """Submit a job and wait for its end."""
        return await self.queue.submit(job_input).finished(timeout_seconds)


@asynccontextmanager
async def running_platform(
    long_poll_seconds: float = 5.0, *, wrap: Callable[[Any], Any] = lambda app: app
) -> AsyncIterator[Platform]:
    """wrap: puts something in front of the app, such as a middleware that looks at what workers send."""
    queue, faults = JobQueue(), Faults()
    app = wrap(create_app(queue, faults, long_poll_seconds=long_poll_seconds))
    async with serving(app, "127.0.0.1", 0) as port:
        yield Platform(queue, faults, f"http://127.0.0.1:{port}", app)
        queue.close()


@dataclass
class Worker:
    """A running worker process. Its log goes to a file, which a failed start shows."""

    process: asyncio.subprocess.Process
    engine_url: str
    log_path: Path
    starts_path: Path
    """Where the scripted engine notes its starts."""
    http_url: str = ""
    """Where it serves HTTP, if that is its mode."""

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    async def exit_code(self, timeout_seconds: float = ANSWER_SECONDS) -> int:
        return await asyncio.wait_for(self.process.wait(), timeout_seconds)

    async def stop(self) -> int:
        """SIGTERM, as platforms stop a worker; SIGKILL if that does not help."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                return await self.exit_code()
            finally:
                with suppress(ProcessLookupError):
                    self.process.kill()
        return self.process.returncode

    async def engine_requests(self) -> list[dict[str, Any]]:
        """The requests that the scripted engine has received, oldest first."""
        seen: list[dict[str, Any]] = (await self.ask_engine())["requests"]
        return seen

    async def ask_engine(self) -> dict[str, Any]:
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False) as client:
            answer: dict[str, Any] = (await client.get(f"{self.engine_url}/requests")).json()
            return answer

    def engine_starts(self) -> list[float]:
        """When the scripted engine was started, in seconds since the epoch."""
        return [float(line) for line in self.starts_path.read_text().splitlines()]

    def engine_pid(self) -> int | None:
        """The engine's main process, a child of its guard; None while there is none."""
        guarded = (pid for guard in self.children() for pid in children_of(guard))
        return next((pid for pid in guarded if "sglang.launch_server" in command_line(pid)), None)

    def engine_pids(self) -> list[int]:
        """The engine's process, and those of its group."""
        leader = self.engine_pid()
        return sorted(group_members(leader)) if leader is not None else []

    def children(self) -> list[int]:
        """The processes that the worker's main thread started."""
        return children_of(self.process.pid)


def children_of(pid: int) -> list[int]:
    """The processes that a process's main thread started; empty if it is gone."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command_line(pid: int) -> list[str]:
    """The words of a process's command line; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def free_port() -> int:
    """A port for a server that another process will start.

    It stays bound here for some time, without listening: a server that sets SO_REUSEADDR, as they do, can still bind
    it, and in the meantime the system gives it to nobody else.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held_ports.append(holder)
    if len(_held_ports) > HELD_PORTS:
        _held_ports.popleft().close()
    port: int = holder.getsockname()[1]
    return port


def clean_environment() -> dict[str, str]:
    """An environment like a container's: nothing from this shell that could configure a worker by accident."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}


async def start_worker(
    platform: Platform | None,
    environment: Mapping[str, str] | None = None,
    *,
    arguments: tuple[str, ...] = (),
    engine: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    folder: Path | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    program: Path = REPOSITORY / "handler.py",
) -> Worker:
    """Start `python handler.py` with a deployed worker's variables. `engine` scripts how the scripted engine starts."""
    port = free_port()
    scratch = Path(tempfile.mkdtemp(dir=_SCRATCH.name))
    log_path = scratch / "log"
    variables = clean_environment() | {
        "PYTHONPATH": str(SCRIPTED_ENGINE),
        "PORT": str(port),
        "SCRIPTED_ENGINE": json.dumps(engine or {}),
        "SCRIPTED_ENGINE_STARTS": str(scratch / "starts"),
        # The SDK's own checks test the machine (GPU, network), which is not what these tests are about.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        # The default is a minute, for which no test should wait.
        "FAILED_START_SECONDS": "5",
    }
    if platform is not None:
        variables |= worker_environment(platform.base_url)
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(program),
            *arguments,
            cwd=folder or scratch,
            env=variables | dict(environment or {}),
            stdout=log if stdout is None else stdout,
            stderr=log if stderr is None else stderr,
        )
    return Worker(process, f"http://127.0.0.1:{port}", log_path, scratch / "starts")


@asynccontextmanager
async def running_worker(
    platform: Platform,
    environment: Mapping[str, str] | None = None,
    *,
    start_seconds: float = ANSWER_SECONDS,
    **more: Any,
) -> AsyncIterator[Worker]:
    """A worker that answers jobs; always stopped at the end. Raises WorkerError if it does not start."""
    worker = await start_worker(platform, environment, **more)
    async with _stopped_at_the_end(worker):
        first = asyncio.create_task(platform.answer({"openai_route": "/v1/models"}, start_seconds))
        ended = asyncio.create_task(worker.process.wait())
        await asyncio.wait({first, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done() or first.result().state is not JobState.COMPLETED:
            raise WorkerError(worker.log)
        ended.cancel()
        yield worker


@asynccontextmanager
async def _stopped_at_the_end(worker: Worker) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:  # no need to drain
        with suppress(ProcessLookupError):
            worker.process.kill()
        raise
    finally:
        await worker.stop()


async def start_http_worker(
    environment: Mapping[str, str] | None = None, *, engine_port: int | None = None, **more: Any
) -> Worker:
    """Start `python handler.py --serve_http`, without a platform."""
    port, engine_port = free_port(), engine_port or free_port()
    variables = {"HOST": "127.0.0.1", "PORT": str(port), "ENGINE_PORT": str(engine_port)} | dict(environment or {})
    worker = await start_worker(None, variables, arguments=more.pop("arguments", ("--serve_http",)), **more)
    worker.engine_url = f"http://127.0.0.1:{engine_port}"
    worker.http_url = f"http://127.0.0.1:{port}"
    return worker


@asynccontextmanager
async def running_http_worker(
    environment: Mapping[str, str] | None = None, *, start_seconds: float = ANSWER_SECONDS, **more: Any
) -> AsyncIterator[Worker]:
    """A worker that answers over HTTP; always stopped at the end. Raises WorkerError if it does not start."""
    worker = await start_http_worker(environment, **more)
    async with _stopped_at_the_end(worker):
        await until_http_is_ready(worker, start_seconds)
        yield worker


async def until_http_is_ready(worker: Worker, seconds: float = ANSWER_SECONDS) -> list[int]:
    """Return once `/ping` answers 200; gives every status seen until then. Raises WorkerError if the worker ends."""
    seen: list[int] = []
    async with httpx.AsyncClient(base_url=worker.http_url, trust_env=False) as client, asyncio.timeout(seconds):
        while not seen or seen[-1] != 200:
            with suppress(httpx.TransportError):
                seen.append((await client.get("/ping")).status_code)
            if worker.process.returncode is not None:
                raise WorkerError(worker.log)
            await asyncio.sleep(0.01)
    return seen


async def until_api_is_ready(
    url: str, worker: Worker, seconds: float = ANSWER_SECONDS, *, key: str | None = None
) -> None:
    """Return once a worker in API mode takes jobs. Raises WorkerError if it ends instead."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client, asyncio.timeout(seconds):
        while True:
            with suppress(httpx.TransportError):
                if (await client.get("/health")).json()["workers"]["ready"]:
                    return
            if worker.process.returncode is not None:
                raise WorkerError(worker.log)
            await asyncio.sleep(0.05)
