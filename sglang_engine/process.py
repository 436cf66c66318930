"""One life of the engine: SGLang as a child process, from its start to its end."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus

import httpx

from common import meters
from common.descriptors import lacks_descriptors
from common.figures import seconds_by_phase
from common.masking import Mask
from common.tasks import cancel
from sglang_engine.early_start import EarlyStart
from sglang_engine.errors import EngineError
from sglang_engine.failure_causes import Diagnosis, diagnose
from sglang_engine.guarded import GuardedProcess
from sglang_engine.hub import DownloadWatch
from sglang_engine.launch import Launch
from sglang_engine.output import Output
from sglang_engine.port_claim import claim_port
from sglang_engine.posix import group_members, name_of, wait_for_exit
from sglang_engine.start_phases import PHASES, StartPhases, label_of, process_began_at

log = logging.getLogger("worker.engine")

# SGLang 0.5.23 checks only every 5 s whether it has been told to stop, and drains without limit. What must be finished
# is finished before it is told, so this deadline can be short.
STOP_TIMEOUT_SECONDS = 1.5
# SIGKILL leaves a process no choice, but the kernel may take a while to free its GPU memory.
KILL_TIMEOUT_SECONDS = 10.0
POLL_SECONDS = 0.1
WARM_PROBE_SECONDS = 1.0  # the answer costs the engine nothing; if it takes longer, it is not ready
WAIT_LOG_SECONDS = 30.0

# How long an engine that has been silent for REQUEST_TIMEOUT_SECONDS has to answer before it counts as wedged. Long,
# since a wrong verdict costs the work of every request in flight. SGLang 0.5.23 itself answers /health_generate with
# 503 if its scheduler has finished no step for 20 s (SGLANG_HEALTH_CHECK_TIMEOUT).
SERVER_PROBE_SECONDS = 5.0
SCHEDULER_PROBE_SECONDS = 30.0

# The processes that SGLang cannot do without call themselves `sglang::scheduler_TP0`, `sglang::detokenizer`, … When one
# dies, it takes 5 s (65 s with the wait for CUDA core dumps) until the parent gives up too.
VITAL_PREFIX = "sglang::"
# If parent and child die together, the parent's own end says more; wait this long for it.
_LEADER_SECONDS = 0.05

_DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Ending:
    """The end of the engine: which process ended, and its code as in `subprocess` (None if it is not known)."""

    process: str
    code: int | None


class Engine:
    """The SGLang process: start, wait until warm, notice its end, stop. It can be started again after its end.

    It runs under a guard: when it ends, or when this process does, however that happens, everything that it started
    ends too. Its output goes to this process's standard error, with secrets masked.
    """

    def __init__(self, launch: Launch, mask: Mask, early: EarlyStart | None = None) -> None:
        """early: its process, if it has been started already, for this launch."""
        self.launch = launch
        self._started = launch  # with the models that were on disk when it was started
        self._mask = mask
        self.start_phases: dict[str, float] = {}
        """Where the last start went, in seconds (`start_phases`)."""
        self._phases: StartPhases | None = None
        self._early = early
        self._claim: socket.socket | None = None
        self._process: GuardedProcess | None = None
        self._output: Output | None = None
        self._vital: dict[int, str] = {}

    def pids(self) -> list[int]:
        """The process and the others in its group; empty if there is none, or no /proc."""
        return sorted(group_members(self._process.pid)) if self._process is not None else []

    async def start(self) -> None:
        """Start the process; returns at once.

        Raises EngineError if SGLang is not installed, the machine does not let it start, or its port is taken: SGLang
        would notice only after minutes, and until then the other server would be mistaken for it.
        """
        if importlib.util.find_spec("sglang") is None:
            raise EngineError(
                "SGLang is not installed for this Python; use the image, or scripts/install for a CPU",
                check="installation",
                is_lasting=True,
            )
        early, self._early = self._early, None
        if early is not None:
            await self._adopt(early)
            return
        try:
            self._claim = claim_port(self.launch)
            self._started = launch = self.launch.with_models_on_disk(os.environ)
            log.info("starting the engine: %s", launch.shown_command())
            self._say_if_offline()
            self._output = await Output.open(self._mask)
            self._watch_start(self._output, time.monotonic())
            with self._output.writable() as descriptor:
                self._process = await GuardedProcess.start(
                    launch.command(), environ=launch.child_environ(os.environ), output=descriptor
                )
        except OSError as error:
            raise EngineError(f"the engine's process cannot be started: {error.strerror or error}") from error

    async def _adopt(self, early: EarlyStart) -> None:
        """Take over the process that has been started already, and let it go on. Raises EngineError."""
        self._started, self._claim = early.started, early.claim
        log.info(
            "the engine was started %.1f s ago, and goes on now: %s",
            time.monotonic() - early.began,
            early.started.shown_command(),
        )
        self._say_if_offline()
        try:
            self._output = await Output.of(self._mask, early.output)
            self._watch_start(self._output, early.began)
            self._process = await GuardedProcess.adopt(early.guard, early.line)
        except OSError as error:
            raise EngineError(f"the engine's process cannot be started: {error.strerror or error}") from error
        finally:
            early.go_on()

    def _say_if_offline(self) -> None:
        if self._started.is_offline:
            log.info("the model is on disk: the engine starts offline")

    def _watch_start(self, output: Output, launched_at: float) -> None:
        is_first = not self.start_phases
        phases = StartPhases(launched_at, worker_began_at=process_began_at() if is_first else None)

        def see(text: str) -> None:
            phases.see(text, time.monotonic())
            self._show_phase(phases)

        output.on_text = see
        see("")
        self._phases = phases

    def _show_phase(self, phases: StartPhases) -> None:
        meters.set_one(meters.ENGINE_PHASE, phases.current, PHASES)

    async def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return as soon as the engine is warm.

        Raises EngineError if it exits first, or is not ready in time.
        """
        began = time.monotonic()
        exited = asyncio.create_task(self._running.wait())
        probing = asyncio.create_task(self._probe_until_warm(began))
        watch = self._started.download_watch(os.environ)
        telling = asyncio.create_task(self._tell(watch)) if watch is not None else None
        try:
            await asyncio.wait({exited, probing}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                why = await self.diagnose(Ending("the engine", exited.result()))
                raise EngineError(f"while starting, {why.text}", check=why.check, is_lasting=why.is_lasting)
            if not probing.done():
                raise EngineError(
                    f"the engine was not ready after {timeout_seconds:g} s (STARTUP_TIMEOUT_SECONDS); "
                    "a first start downloads the model, which may take longer"
                )
            probing.result()
        finally:
            await cancel(exited, probing, telling)
        self._vital = self._vital_processes()
        meters.START_PHASE_SECONDS.set(time.monotonic() - began, "ready")
        log.info("the engine is ready after %.1f s", time.monotonic() - began)
        self._tell_phases()

    async def _tell(self, watch: DownloadWatch) -> None:
        if self._phases is not None:
            self._phases.downloads()
            self._show_phase(self._phases)
        await watch.tell(log.info)
        if self._phases is not None:
            self._phases.downloaded(time.monotonic())
            self._show_phase(self._phases)

    def _tell_phases(self) -> None:
        if self._phases is not None and self._output is not None:
            self._output.on_text = lambda _: None
            meters.set_one(meters.ENGINE_PHASE, "", PHASES)
            self.start_phases = self._phases.until(time.monotonic())
            for phase, seconds in self.start_phases.items():
                meters.START_PHASE_SECONDS.set(seconds, label_of(phase))
            log.info("the start went to: %s", seconds_by_phase(self.start_phases))

    async def wait_for_end(self) -> Ending:
        """Return as soon as the engine has ended, or one of the vital processes that it had when it became ready."""
        leader = asyncio.create_task(self._running.wait())
        vital = {asyncio.create_task(wait_for_exit(pid)): name for pid, name in self._vital.items()}
        try:
            ended, _ = await asyncio.wait({leader, *vital}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({leader}, timeout=_LEADER_SECONDS)
            if leader.done():
                return Ending("the engine", leader.result())
            task = next(iter(ended))
            return Ending(f"the engine's process {vital[task]}", task.result())
        finally:
            await cancel(leader, *vital)

    def _vital_processes(self) -> dict[int, str]:
        try:
            return {pid: name for pid in self.pids() if (name := name_of(pid)).startswith(VITAL_PREFIX)}
        except OSError as error:
            log.warning("/proc cannot be read (%s): a dead scheduler is noticed only when SGLang ends", error.strerror)
            return {}

    async def diagnose(self, ending: Ending) -> Diagnosis:
        """How and why the engine ended, as a sentence. Kills what is left of it: its last output has to be read."""
        self._running.kill()
        output = await self._output.rest(_DRAIN_SECONDS) if self._output is not None else ""
        why = diagnose(ending.code, output)
        return replace(why, text=f"{ending.process} {why.text}")

    async def find_hang(self) -> str | None:
        """Which part of the engine does not answer, to complete "the engine …"; None if everything does.

        Asks the server first, then the scheduler behind it, which has to generate a token or finish a step of its
        work. Only for an engine that has been silent for long, since this may take SCHEDULER_PROBE_SECONDS.
        """
        if not await self._answers("/health", SERVER_PROBE_SECONDS):
            return "does not answer on /health"
        if not await self._answers("/health_generate", SCHEDULER_PROBE_SECONDS):
            return "answers on /health, but its scheduler does not on /health_generate"
        return None

    async def _answers(self, path: str, timeout_seconds: float) -> bool:
        """Whether a health route answers in time with anything but 503, by which SGLang says that it gave up."""
        try:
            async with self._probe_client(timeout_seconds) as client, asyncio.timeout(timeout_seconds):
                response = await client.get(path)
        except (httpx.TransportError, TimeoutError) as error:
            return lacks_descriptors(error)  # then we know nothing about the engine, and leave it alone
        return response.status_code != HTTPStatus.SERVICE_UNAVAILABLE

    async def stop(self) -> None:
        """End the process and everything that it started: SIGTERM, a deadline, then SIGKILL to all of it."""
        if self._process is not None and not self._process.has_ended:
            log.info("stopping the engine")
            self._process.terminate()  # not its group: to SGLang, a scheduler that ends first looks like a crash
            try:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_SECONDS)
            finally:  # even if this is cancelled: the children must not outlive us
                self._process.kill()
        await self.kill()

    async def kill(self) -> None:
        """End the process and everything that it started, at once; return when it is gone, or cannot be ended."""
        try:
            if self._process is not None:
                self._process.kill()
                async with asyncio.timeout(KILL_TIMEOUT_SECONDS):
                    await self._process.wait_for_all()
        except TimeoutError:
            log.error("the engine does not end: it is stuck in the kernel, which points to the GPU or its driver")
        finally:
            if self._output is not None:
                self._output.close()
            if self._claim is not None:
                self._claim.close()
            self._process = self._output = self._claim = None

    @property
    def _running(self) -> GuardedProcess:
        if self._process is None:
            raise RuntimeError("the engine has not been started")
        return self._process

    def _probe_client(self, timeout_seconds: float) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.launch.base_url, timeout=timeout_seconds, trust_env=False)

    async def _probe_until_warm(self, began: float) -> None:
        """Poll `/health`, which answers 200 once SGLang's own warm-up request is done."""
        said = began
        async with self._probe_client(WARM_PROBE_SECONDS) as client:
            while True:
                try:
                    response = await client.get("/health")
                    if response.status_code == 200:
                        return
                    seen = f"it answers {response.status_code}, so it is still warming up"
                except httpx.TimeoutException:
                    seen = "it does not answer yet"
                except httpx.TransportError:
                    seen = "it does not listen yet, so it is loading or downloading the model"
                if time.monotonic() - said >= WAIT_LOG_SECONDS:
                    said = time.monotonic()
                    log.info("waiting for the engine, %.0f s so far: %s", said - began, seen)
                await asyncio.sleep(POLL_SECONDS)
