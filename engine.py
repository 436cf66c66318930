"""The engine room's plan: SGLang's command line from the environment.

Pure: a mapping of variables in, a command line out, every problem reported at once. The process that runs it is in
engine_process.py, its restarts in supervisor.py.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

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
    "ADMIN_API_KEY": Option("--admin-api-key", secret=True),
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
