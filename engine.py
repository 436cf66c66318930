"""The engine room's plan: SGLang's command line from the environment. `python engine.py` runs it without any jobs.

Planning is pure: a mapping of variables in, a command line out, every problem reported at once. The process that the
worker runs it in is in engine_process.py, its restarts in supervisor.py; `python engine.py` itself in engine_alone.py.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import model_cache
import options
from addresses import url_of
from misspelt import nearest_names
from model_cache import DownloadWatch
from options import Option
from platforms import WAVERLESS_VARIABLES
from presets import PRESETS, Preset
from settings import VARIABLES, ConfigurationError, Settings

# Names that users of RunPod's official SGLang and vLLM workers know, where they mean the same as an option of SGLang.
RUNPOD_NAMES: dict[str, str] = {
    "MODEL_NAME": "MODEL_PATH",
    "MODEL_REVISION": "REVISION",
    "TOKENIZER": "TOKENIZER_PATH",
    "TOKENIZER_NAME": "TOKENIZER_PATH",
    "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "SERVED_MODEL_NAME",
    "MAX_MODEL_LEN": "CONTEXT_LENGTH",
    "MAX_NUM_SEQS": "MAX_RUNNING_REQUESTS",
    "SEED": "RANDOM_SEED",
}

_NO_GRPC = "the worker talks HTTP to its engine"
_PLAIN_HTTP = "the worker reaches its engine in plain HTTP, on this machine; TLS ends at the platform"
_ONE_MACHINE = "one worker is one machine; scale out with more workers"

# Options that are no business of a user's: the worker depends on them, or they make no sense in it.
RESERVED: dict[str, str] = {
    "CONFIG": "a file could set what this worker then does not know; set the variables of the options instead",
    "GRPC_MODE": _NO_GRPC,
    "SMG_GRPC_MODE": _NO_GRPC,
    "FASTAPI_ROOT_PATH": "it moves the paths that the worker calls",
    "SSL_KEYFILE": _PLAIN_HTTP,
    "SSL_CERTFILE": _PLAIN_HTTP,
    "SSL_CA_CERTS": _PLAIN_HTTP,
    "SSL_KEYFILE_PASSWORD": _PLAIN_HTTP,
    "ENABLE_SSL_REFRESH": _PLAIN_HTTP,
    "NNODES": _ONE_MACHINE,
    "NODE_RANK": _ONE_MACHINE,
    "DIST_INIT_ADDR": _ONE_MACHINE,
    "DISAGGREGATION_MODE": "prefill and decode apart need two engines and a router; a worker is one engine",
    "ENCODER_ONLY": "such an engine answers no requests",
}

# Variables of other versions and of other workers that are no option of this SGLang, and what to set instead.
RENAMED: dict[str, str] = {
    "ENABLE_FLASHINFER_MLA": "use ATTENTION_BACKEND=flashinfer",
    "ENABLE_DEEPEP_MOE": "use MOE_A2A_BACKEND=deepep",
    "ENABLE_EP_MOE": "use EP_SIZE",
    "ENABLE_FLASHINFER_MOE": "use MOE_RUNNER_BACKEND=flashinfer_cutlass",
    "CUDA_GRAPH_MAX_BS": "use CUDA_GRAPH_MAX_BS_DECODE",
    "CUDA_GRAPH_BS": "use CUDA_GRAPH_BS_DECODE",
    "GPU_MEMORY_UTILIZATION": "use MEM_FRACTION_STATIC, which counts weights and KV cache only",
    "MAX_NUM_BATCHED_TOKENS": "use CHUNKED_PREFILL_SIZE",
    "ENABLE_PREFIX_CACHING": "it is always on; DISABLE_RADIX_CACHE=true turns it off",
    "ENFORCE_EAGER": "use DISABLE_CUDA_GRAPH=true",
    "BLOCK_SIZE": "use PAGE_SIZE",
    "CUSTOM_CHAT_TEMPLATE": "use CHAT_TEMPLATE",
    "DISABLE_LOG_REQUESTS": "requests are not logged unless LOG_REQUESTS=true",
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

EXTRA_ARGS = "SGLANG_EXTRA_ARGS"

# The environment of the image, one NAME=value a line, written when it is built: what it sets is a default, which a
# preset may replace, and not a user's wish.
IMAGE_FILE = Path(__file__).with_name("image.env")


def _options() -> dict[str, Option]:
    table = options.load()
    by_name = {name: option for option in table for name in (option.name, *option.aliases)}
    return by_name | {name: by_name[known] for name, known in RUNPOD_NAMES.items()}


# Environment variable -> launch option, for every spelling of every option's flag and the names above.
OPTIONS: dict[str, Option] = _options()

_FLAGS = {options.flag_of(name): option for name, option in OPTIONS.items() if name not in RUNPOD_NAMES}


@dataclass(frozen=True)
class Setting:
    """A variable that counts, its value, and where it came from: `default`, `image`, `preset …` or `environment`."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class HubModel:
    """A model on the hub, and the flag that names it; without a flag, one that only SGLang can find (an adapter)."""

    flag: str
    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class EngineConfig:
    """A checked configuration of the engine: what to run, and how to reach it."""

    arguments: tuple[str, ...]
    """SGLang's launch arguments, after `python -m sglang.launch_server`."""

    settings: tuple[Setting, ...]
    """The variables that they come from."""

    host: str
    port: int
    served_model_name: str
    api_key: str | None = None

    models: tuple[HubModel, ...] = ()
    """What it needs of the hub."""

    download_folder: str | None = None
    """SGLang's --download-dir."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], image: Mapping[str, str] | None = None) -> EngineConfig:
        """Build the configuration from environment variables over a preset, the image's variables and the defaults.

        Raises ConfigurationError with every problem at once: a value that is not accepted, two names of one option with
        different values, a reserved option.
        """
        problems: list[str] = []
        chosen = _choose(environ, image or {}, problems)
        arguments: list[str] = []
        for setting in chosen.values():
            option = OPTIONS[setting.name]
            try:
                arguments += option.arguments(setting.value, setting.name) if setting.value else []
            except ValueError as error:
                problems.append(f"{setting.name}={_shown(option, setting.value)}: expected {error}")
        extra = _extra_arguments(environ, problems)
        given = {flag: setting.value for flag, setting in chosen.items()} | dict(_values(extra))
        for flag, name in (("--model-path", "MODEL_NAME"), ("--host", "HOST"), ("--port", "PORT")):
            if not given.get(flag):
                problems.append(f"{name} is empty: {_MUST_BE_KNOWN[flag]}")
        if not problems and not _is_port(given["--port"]):
            problems.append(f"PORT={given['--port']!r}: expected a port, from 1 to 65535")
        if problems:
            raise ConfigurationError(problems)
        return cls(
            arguments=(*arguments, *extra),
            settings=tuple(chosen.values()),
            host=given["--host"],
            port=int(given["--port"]),
            served_model_name=given.get("--served-model-name") or given["--model-path"],
            api_key=given.get("--api-key"),
            models=_hub_models(given),
            download_folder=given.get("--download-dir") or None,
        )

    def with_models_on_disk(self, environ: Mapping[str, str]) -> EngineConfig:
        """The same with a folder in place of each model that is on disk as a whole; the others stay in `models`."""
        where = model_cache.caches(environ, self.download_folder)
        arguments, missing = list(self.arguments), []
        for model in self.models:
            folder = model.flag and model_cache.find_model(model.repository, model.revision, where)
            if folder:
                arguments = _with_value(arguments, model.flag, str(folder))
            else:
                missing.append(model)
        if len(missing) < len(self.models) and "--served-model-name" not in dict(_values(arguments)):
            arguments += ["--served-model-name", self.served_model_name]  # else SGLang would take the folder's
        return replace(self, arguments=tuple(arguments), models=tuple(missing))

    @property
    def is_offline(self) -> bool:
        """Whether the engine needs nothing from the hub: then no start asks it for anything."""
        return not self.models

    @property
    def base_url(self) -> str:
        """Where this machine reaches the engine."""
        return url_of(self.host, self.port)

    def download_watch(self, environ: Mapping[str, str]) -> DownloadWatch | None:
        """A watch on the download of the model, None where it needs none."""
        model = next((model for model in self.models if model.flag == "--model-path"), None)
        if model is None:
            return None
        where = model_cache.caches(environ, self.download_folder)[-1]
        return DownloadWatch(model.repository, model.revision, where, environ)

    def command(self) -> list[str]:
        """The engine's command line, for this Python."""
        return [sys.executable, "-m", "sglang.launch_server", *self.arguments]

    def shown_command(self) -> str:
        """The command line as a log may show it, secrets masked."""
        return shlex.join(masked(self.command()))


_MUST_BE_KNOWN = {
    "--model-path": "there is no model to serve",
    "--host": "the worker must know where its engine listens",
    "--port": "the worker must know where its engine listens",
}


def _is_port(text: str) -> bool:
    try:
        return 1 <= int(text) <= 65535
    except ValueError:
        return False


def read_image_file(path: Path = IMAGE_FILE) -> dict[str, str]:
    """The variables that the image sets; empty outside of one."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _choose(environ: Mapping[str, str], image: Mapping[str, str], problems: list[str]) -> dict[str, Setting]:
    """What counts for each flag, in the table's order: the environment over a preset, over the image, over defaults."""
    preset = _preset(environ, problems)
    by_user, by_image = _split(environ, image)
    layers = [
        ("default", DEFAULTS),
        ("image", by_image),
        (f"preset {preset.name}" if preset else "", preset.variables if preset else {}),
        ("environment", by_user),
    ]
    chosen: dict[str, Setting] = {}
    for source, variables in layers:
        chosen |= _settings(source, variables, problems)
    algorithm = chosen.get("--speculative-algorithm")
    if algorithm is None or algorithm.value != "EAGLE":
        for flag in (OPTIONS[name].flag for name in _EAGLE_DEFAULTS):
            if flag in chosen and chosen[flag].source in ("default", "image"):
                del chosen[flag]
    revision, model = chosen.get("--revision"), chosen.get("--model-path")
    if revision and model and revision.source == "image" != model.source:
        del chosen["--revision"]  # of the model that the image was built with
    order = {option.flag: None for option in OPTIONS.values()}
    return {flag: chosen[flag] for flag in order if flag in chosen}


def _preset(environ: Mapping[str, str], problems: list[str]) -> Preset | None:
    name = environ.get("PRESET", "").strip().lower()
    if name and name not in PRESETS:
        problems.append(f"PRESET={name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS.get(name)


def _split(environ: Mapping[str, str], image: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options' variables that the user set, and those that are still as the image set them."""
    known = {name: environ[name].strip() for name in OPTIONS if name in environ}
    by_image = {name: value for name, value in known.items() if image.get(name) == environ[name]}
    return {name: value for name, value in known.items() if name not in by_image}, by_image


def _settings(source: str, variables: Mapping[str, str], problems: list[str]) -> dict[str, Setting]:
    """One layer, by flag. An empty value stands: it turns the layers below it off."""
    found: dict[str, Setting] = {}
    for name in (name for name in OPTIONS if name in variables):
        flag, value = OPTIONS[name].flag, variables[name]
        if source == "environment" and value and (canonical := OPTIONS[name].name) in RESERVED:
            problems.append(f"{name} is reserved: {RESERVED[canonical]}")
        other = found.get(flag)
        if other is not None and other.value and value and other.value != value:
            problems.append(f"{other.name} and {name} both set {flag}, to different values")
        elif other is None or not other.value:
            found[flag] = Setting(name, value, source)
    return found


def _extra_arguments(environ: Mapping[str, str], problems: list[str]) -> list[str]:
    try:
        words = shlex.split(environ.get(EXTRA_ARGS, ""))
    except ValueError as error:
        problems.append(f"{EXTRA_ARGS} cannot be split like a shell does: {str(error).lower()}")
        return []
    for word in words:
        option = _option_of(word.partition("=")[0])
        if option is not None and option.name in RESERVED:
            problems.append(f"{EXTRA_ARGS}: {option.flag} is reserved: {RESERVED[option.name]}")
    return words


def _values(words: list[str]) -> Iterator[tuple[str, str]]:
    """The flags among the words that take one value, by their option's first spelling, and that value."""
    for position, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if (option := _option_of(flag)) is not None:
            yield option.flag, value if equals else " ".join(words[position + 1 : position + 2])


def _option_of(flag: str) -> Option | None:
    """The option of a flag as argparse reads it: any spelling, or the beginning of just one."""
    if flag in _FLAGS or not flag.startswith("--"):
        return _FLAGS.get(flag)
    begun = {option.flag: option for full, option in _FLAGS.items() if full.startswith(flag)}
    return next(iter(begun.values())) if len(begun) == 1 else None


def _hub_models(given: Mapping[str, str]) -> tuple[HubModel, ...]:
    revision = given.get("--revision") or None
    draft_revision = given.get("--speculative-draft-model-revision") or None
    named = [
        HubModel("--model-path", given["--model-path"], revision),
        HubModel("--tokenizer-path", given.get("--tokenizer-path", ""), revision),
        HubModel("--speculative-draft-model-path", given.get("--speculative-draft-model-path", ""), draft_revision),
    ]
    # `[name=]path …`, or a JSON array; what is no path on this disk is taken for one on the hub.
    others = [word.rpartition("=")[2] for word in given.get("--lora-paths", "").split()]
    others.append(given.get("--speculative-token-map", ""))
    return (
        *(model for model in named if model_cache.is_repository(model.repository)),
        *(HubModel("", other) for other in others if other and not Path(other).exists()),
    )


def _with_value(words: list[str], flag: str, value: str) -> list[str]:
    """The words with another value for a flag, however it is spelled there."""
    changed: list[str] = []
    is_value = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_flag = (option := _option_of(name)) is not None and option.flag == flag
        changed.append(value if is_value else f"{name}={value}" if is_flag and equals else word)
        is_value = is_flag and not equals
    return changed


def warnings_for(environ: Mapping[str, str]) -> Iterator[str]:
    """What the user should know of variables that have no effect: misspelt ones, and ones of other versions."""
    version = options.sglang_version()
    known = {*OPTIONS, *(variable.name for variable in VARIABLES), *WAVERLESS_VARIABLES, EXTRA_ARGS, "PRESET"}
    for name in sorted(environ):
        if name in known or not environ[name].strip():
            continue
        if name in RENAMED:
            yield f"{name} is ignored: it is no option of SGLang {version}; {RENAMED[name]}"
        elif near := nearest_names(name, known):
            yield f"{name} is ignored: it is no option of SGLang {version}; did you mean {' or '.join(near)}?"


def masked(words: list[str]) -> list[str]:
    """Words of a command line with the values of secret options replaced."""
    shown, hide = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_secret = (option := _option_of(flag)) is not None and option.is_secret
        shown.append("***" if hide else f"{flag}=***" if is_secret and equals else word)
        hide = is_secret and not equals
    return shown


def _shown(option: Option, value: str) -> str:
    return "***" if option.is_secret else repr(value)


def configure(environ: Mapping[str, str], image: Mapping[str, str]) -> tuple[EngineConfig, Settings]:
    """The engine's configuration and the worker's settings. Raises ConfigurationError with the problems of both."""
    problems: list[str] = []
    config: EngineConfig | None = None
    settings: Settings | None = None
    try:
        config = EngineConfig.from_environ(environ, image)
    except ConfigurationError as error:
        problems += error.problems
    try:
        settings = Settings.from_environ(environ)
    except ConfigurationError as error:
        problems += error.problems
    if config is None or settings is None:
        raise ConfigurationError(problems)
    return config, settings


def child_environ(environ: Mapping[str, str], *, is_offline: bool = False) -> dict[str, str]:
    """The engine's environment: ours, with a `/health` that does not generate tokens but still means warm.

    is_offline: whether it must not call the hub.
    """
    offline = {"HF_HUB_OFFLINE": "1"} if is_offline else {}
    return {**environ, **offline, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}


if __name__ == "__main__":
    from engine_alone import main

    sys.exit(main())
