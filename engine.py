"""The engine room: SGLang's command line from the environment, and the life of the process that it starts.

`EngineConfig` is pure: a mapping of variables in, a command line out, every problem reported at once. `Engine` owns the
process: start, wait until warm, notice its death, stop.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

import httpx

from processes import die_with_parent, kill_group
from settings import ConfigurationError

log = logging.getLogger("worker.engine")


class Kind(Enum):
    """How an option's value is written in the environment and on the command line."""

    TEXT = "text"
    INTEGER = "a whole number"
    SIZE = "a whole number, or one with a unit such as 128k or 64Ki"
    NUMBER = "a number"
    FLAG = "true or false"  # the flag alone when true, nothing when false
    JSON = "JSON"
    LIST = "words, split like a shell does, or a JSON array"


@dataclass(frozen=True)
class Option:
    """One launch option of SGLang."""

    flag: str
    kind: Kind = Kind.TEXT
    secret: bool = False


# Environment variable -> launch option of SGLang 0.5.23. Several names may lead to one flag: SGLang's own spellings,
# and the names that users of RunPod's official SGLang worker know.
OPTIONS: dict[str, Option] = {
    # The model
    "MODEL_NAME": Option("--model-path"),
    "MODEL_PATH": Option("--model-path"),
    "SERVED_MODEL_NAME": Option("--served-model-name"),
    "REVISION": Option("--revision"),
    "TOKENIZER_PATH": Option("--tokenizer-path"),
    "TOKENIZER_MODE": Option("--tokenizer-mode"),
    "SKIP_TOKENIZER_INIT": Option("--skip-tokenizer-init", Kind.FLAG),
    "TRUST_REMOTE_CODE": Option("--trust-remote-code", Kind.FLAG),
    "LOAD_FORMAT": Option("--load-format"),
    "DTYPE": Option("--dtype"),
    "QUANTIZATION": Option("--quantization"),
    "KV_CACHE_DTYPE": Option("--kv-cache-dtype"),
    "CONTEXT_LENGTH": Option("--context-length", Kind.SIZE),
    "CHAT_TEMPLATE": Option("--chat-template"),
    # What GLM-4.7-Flash's answers mean
    "TOOL_CALL_PARSER": Option("--tool-call-parser"),
    "REASONING_PARSER": Option("--reasoning-parser"),
    # The server
    "HOST": Option("--host"),
    "PORT": Option("--port", Kind.INTEGER),
    "API_KEY": Option("--api-key", secret=True),
    "LOG_LEVEL": Option("--log-level"),
    "LOG_LEVEL_HTTP": Option("--log-level-http"),
    "LOG_REQUESTS": Option("--log-requests", Kind.FLAG),
    "SHOW_TIME_COST": Option("--show-time-cost", Kind.FLAG),
    "FILE_STORAGE_PATH": Option("--file-storage-path"),
    "STREAM_INTERVAL": Option("--stream-interval", Kind.INTEGER),
    "ENABLE_METRICS": Option("--enable-metrics", Kind.FLAG),
    "ENABLE_CACHE_REPORT": Option("--enable-cache-report", Kind.FLAG),
    "WATCHDOG_TIMEOUT": Option("--watchdog-timeout", Kind.NUMBER),
    # Memory and scheduling
    "MEM_FRACTION_STATIC": Option("--mem-fraction-static", Kind.NUMBER),
    "MAX_RUNNING_REQUESTS": Option("--max-running-requests", Kind.INTEGER),
    "MAX_TOTAL_TOKENS": Option("--max-total-tokens", Kind.SIZE),
    "CHUNKED_PREFILL_SIZE": Option("--chunked-prefill-size", Kind.INTEGER),
    "MAX_PREFILL_TOKENS": Option("--max-prefill-tokens", Kind.SIZE),
    "SCHEDULE_POLICY": Option("--schedule-policy"),
    "SCHEDULE_CONSERVATIVENESS": Option("--schedule-conservativeness", Kind.NUMBER),
    "DISABLE_RADIX_CACHE": Option("--disable-radix-cache", Kind.FLAG),
    "SLEEP_ON_IDLE": Option("--sleep-on-idle", Kind.FLAG),
    # Speculative decoding
    "SPECULATIVE_ALGORITHM": Option("--speculative-algorithm"),
    "SPECULATIVE_DRAFT_MODEL_PATH": Option("--speculative-draft-model-path"),
    "SPECULATIVE_NUM_STEPS": Option("--speculative-num-steps", Kind.INTEGER),
    "SPECULATIVE_EAGLE_TOPK": Option("--speculative-eagle-topk", Kind.INTEGER),
    "SPECULATIVE_NUM_DRAFT_TOKENS": Option("--speculative-num-draft-tokens", Kind.INTEGER),
    # The hardware
    "DEVICE": Option("--device"),
    "TENSOR_PARALLEL_SIZE": Option("--tensor-parallel-size", Kind.INTEGER),
    "TP_SIZE": Option("--tensor-parallel-size", Kind.INTEGER),
    "DATA_PARALLEL_SIZE": Option("--data-parallel-size", Kind.INTEGER),
    "DP_SIZE": Option("--data-parallel-size", Kind.INTEGER),
    "LOAD_BALANCE_METHOD": Option("--load-balance-method"),
    "ENABLE_P2P_CHECK": Option("--enable-p2p-check", Kind.FLAG),
    # Kernels
    "ATTENTION_BACKEND": Option("--attention-backend"),
    "SAMPLING_BACKEND": Option("--sampling-backend"),
    "GRAMMAR_BACKEND": Option("--grammar-backend"),
    "DISABLE_CUDA_GRAPH": Option("--disable-cuda-graph", Kind.FLAG),
    "DISABLE_OUTLINES_DISK_CACHE": Option("--disable-outlines-disk-cache", Kind.FLAG),
    "ENABLE_TORCH_COMPILE": Option("--enable-torch-compile", Kind.FLAG),
    "TRITON_ATTENTION_REDUCE_IN_FP32": Option("--triton-attention-reduce-in-fp32", Kind.FLAG),
    "RANDOM_SEED": Option("--random-seed", Kind.INTEGER),
    # Shapes that no environment variable above has
    "JSON_MODEL_OVERRIDE_ARGS": Option("--json-model-override-args", Kind.JSON),
    "LORA_PATHS": Option("--lora-paths", Kind.LIST),
}

# What GLM-4.7-Flash needs, from its model card (https://huggingface.co/zai-org/GLM-4.7-Flash); 0.9 of the GPU's memory
# and loopback are this worker's choice. The image sets the same. An empty value in the environment turns one off.
DEFAULTS: dict[str, str] = {
    "MODEL_NAME": "zai-org/GLM-4.7-Flash",
    "SERVED_MODEL_NAME": "glm-4.7-flash",
    "TOOL_CALL_PARSER": "glm47",
    "REASONING_PARSER": "glm45",
    "MEM_FRACTION_STATIC": "0.9",
    "SPECULATIVE_ALGORITHM": "EAGLE",
    "SPECULATIVE_NUM_STEPS": "3",
    "SPECULATIVE_EAGLE_TOPK": "1",
    "SPECULATIVE_NUM_DRAFT_TOKENS": "4",
    "HOST": "127.0.0.1",
    "PORT": "30000",
}

# These describe the default algorithm; where that is turned off or replaced, they would describe nothing.
_EAGLE_DEFAULTS = ("SPECULATIVE_NUM_STEPS", "SPECULATIVE_EAGLE_TOPK", "SPECULATIVE_NUM_DRAFT_TOKENS")

# Variables of RunPod's official SGLang worker whose option SGLang no longer has.
REMOVED: dict[str, str] = {"ENABLE_FLASHINFER_MLA": "use ATTENTION_BACKEND=flashinfer"}

_SIZE = re.compile(r"-?\d+|\d+(\.\d+)?[kMGT]|\d+[KMGT]i")  # SGLang's human_readable_int
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

# SGLang 0.5.23 looks only every 5 s whether it has been told to stop, and drains without limit: what must be finished
# is finished before it is told, so that this deadline may be short.
STOP_TIMEOUT_SECONDS = 2.5
POLL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 1.0  # the answer costs the engine nothing; one that needs longer for it is not ready
WAIT_LOG_SECONDS = 30.0


@dataclass(frozen=True)
class EngineConfig:
    """A checked configuration of the engine: what to run, and how to reach it."""

    arguments: tuple[str, ...]
    """SGLang's launch arguments, after `python -m sglang.launch_server`."""

    host: str
    port: int
    served_model_name: str
    api_key: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> EngineConfig:
        """Build the configuration from environment variables over the defaults.

        Raises ConfigurationError with every problem at once: a value of the wrong kind, or two names of one option with
        different values.
        """
        problems: list[str] = []
        chosen = _choose(environ, problems)
        arguments: list[str] = []
        for name, value in chosen.items():
            try:
                arguments += _arguments(OPTIONS[name], value)
            except ValueError:
                problems.append(f"{name}={_shown(name, value)}: expected {OPTIONS[name].kind.value}")
        by_flag = {OPTIONS[name].flag: value for name, value in chosen.items()}
        if "--model-path" not in by_flag:
            problems.append("MODEL_NAME is empty: there is no model to serve")
        for name, flag in (("HOST", "--host"), ("PORT", "--port")):
            if flag not in by_flag:
                problems.append(f"{name} is empty: the worker must know where its engine listens")
        if problems:
            raise ConfigurationError(problems)
        return cls(
            arguments=tuple(arguments),
            host=by_flag["--host"],
            port=int(by_flag["--port"]),
            served_model_name=by_flag.get("--served-model-name", by_flag["--model-path"]),
            api_key=by_flag.get("--api-key"),
        )

    @property
    def base_url(self) -> str:
        """Where this machine reaches the engine: one that listens everywhere is reached on loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def command(self) -> list[str]:
        """The engine's command line, for this Python."""
        return [sys.executable, "-m", "sglang.launch_server", *self.arguments]

    def shown_command(self) -> str:
        """The command line as a log may show it, secrets masked."""
        secret_flags = {option.flag for option in OPTIONS.values() if option.secret}
        shown, hide = [], False
        for word in self.command():
            shown.append("***" if hide else word)
            hide = word in secret_flags
        return shlex.join(shown)


def _choose(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """The variables that count, by name, in the order of OPTIONS: those that are set, over the defaults."""
    chosen: dict[str, str] = {}
    name_of_flag: dict[str, str] = {}
    off: set[str] = set()
    for name, option in OPTIONS.items():
        if name not in environ:
            continue
        value = environ[name].strip()
        if not value:
            off.add(option.flag)
        elif (other := name_of_flag.get(option.flag)) and chosen[other] != value:
            problems.append(f"{other} and {name} both set {option.flag}, to different values")
        elif other is None:
            chosen[name], name_of_flag[option.flag] = value, name
    defaults = dict(DEFAULTS)
    if environ.get("SPECULATIVE_ALGORITHM", DEFAULTS["SPECULATIVE_ALGORITHM"]).strip() != "EAGLE":
        for name in _EAGLE_DEFAULTS:
            del defaults[name]
    for name, value in defaults.items():
        flag = OPTIONS[name].flag
        if flag not in name_of_flag and flag not in off:
            chosen[name] = value
    for name, hint in REMOVED.items():
        if environ.get(name, "").strip():
            log.warning("%s is ignored: SGLang no longer has this option; %s", name, hint)
    return {name: chosen[name] for name in OPTIONS if name in chosen}


def _arguments(option: Option, value: str) -> list[str]:
    """The command-line words of one option. Raises ValueError for a value that is not of the option's kind."""
    match option.kind:
        case Kind.FLAG:
            if value.lower() not in _TRUE + _FALSE:
                raise ValueError(value)
            return [option.flag] if value.lower() in _TRUE else []
        case Kind.INTEGER:
            int(value)
        case Kind.SIZE:
            if not _SIZE.fullmatch(value):
                raise ValueError(value)
        case Kind.NUMBER:
            float(value)
        case Kind.JSON:
            json.loads(value)
        case Kind.LIST:
            words = json.loads(value) if value.startswith("[") else shlex.split(value)
            return [option.flag, *(word if isinstance(word, str) else json.dumps(word) for word in words)]
        case Kind.TEXT:
            pass
    return [option.flag, value]


def _shown(name: str, value: str) -> str:
    return "***" if OPTIONS[name].secret else repr(value)


class EngineError(Exception):
    """The engine did not start, or died. The message says why, as far as that can be known from outside."""


class Engine:
    """The SGLang process. Use it as an async context manager: entering starts it, leaving ends it and all its children.

    The process leads a session and process group of its own, so that its children can be ended with it; on Linux it
    also dies with this process, however that ends.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the process; returns at once. Its output goes to this process's standard error.

        Raises EngineError where SGLang is not installed, or something else listens on its port: SGLang would find out
        only after minutes, and until then the other server would pass for it.
        """
        if importlib.util.find_spec("sglang") is None:
            raise EngineError("SGLang is not installed for this Python; use the image, or scripts/install for a CPU")
        if _is_listening(self.config):
            raise EngineError(f"port {self.config.port} is in use by another process; set PORT to a free one")
        log.info("starting the engine: %s", self.config.shown_command())
        self._process = await asyncio.create_subprocess_exec(
            *self.config.command(),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=_child_environ(os.environ),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    async def wait_until_ready(self, timeout_seconds: float) -> None:
        """Return as soon as the engine is warm.

        Raises EngineError when it exits first, or is not ready in time.
        """
        began = time.monotonic()
        exited = asyncio.create_task(self._running.wait())
        probing = asyncio.create_task(self._probe_until_warm(began))
        try:
            await asyncio.wait({exited, probing}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                raise EngineError(f"while starting, the engine {describe_exit(exited.result())}; see its output above")
            if not probing.done():
                raise EngineError(
                    f"the engine was not ready after {timeout_seconds:g} s (STARTUP_TIMEOUT_SECONDS); "
                    "a first start downloads the model, which may need longer"
                )
            probing.result()
        finally:
            for task in (exited, probing):
                task.cancel()
            await asyncio.gather(exited, probing, return_exceptions=True)
        log.info("the engine is ready after %.1f s", time.monotonic() - began)

    async def wait_for_failure(self) -> str:
        """Return a sentence that says how the engine ended, once it does without being told to."""
        code = await self._running.wait()
        return f"the engine {describe_exit(code)}"

    async def stop(self) -> None:
        """End the process and everything that it started: SIGTERM, a deadline, SIGKILL to the group."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            if process.returncode is None:
                log.info("stopping the engine")
                with suppress(ProcessLookupError):
                    process.terminate()  # it alone: a scheduler that goes first looks like a crash to SGLang
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)
        finally:  # also when this is cancelled: the children must not outlive us
            kill_group(process.pid)
        await process.wait()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the engine has not been started")
        return self._process

    async def _probe_until_warm(self, began: float) -> None:
        """Poll `/health`, which answers 200 once SGLang's own warm-up request is through."""
        said = began
        async with httpx.AsyncClient(
            base_url=self.config.base_url, timeout=PROBE_TIMEOUT_SECONDS, trust_env=False
        ) as client:
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


def describe_exit(code: int) -> str:
    """`exited with code 2 (…)` or `was killed by SIGKILL (…)`, with what usually causes it."""
    if code < 0:
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"was killed by {name}" + _hint(_CAUSES.get(128 - code))
    return f"exited with code {code}" + _hint(_CAUSES.get(code))


_CAUSES = {
    1: "an error at start, such as a model that is not found or too little GPU memory",
    2: "an option that SGLang does not accept",
    137: "killed from outside, usually out of memory",
}


def _hint(cause: str | None) -> str:
    return f" (usual cause: {cause})" if cause else ""


def _child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ours, with a `/health` that does not generate tokens but still means warm."""
    return {**environ, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}


def _is_listening(config: EngineConfig) -> bool:
    url = httpx.URL(config.base_url)
    with suppress(OSError), socket.create_connection((url.host, config.port), timeout=1.0):
        return True
    return False
