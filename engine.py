"""The engine's plan: SGLang's command line, from the environment. `python engine.py` runs it, without a worker.

Planning is pure: a mapping of variables in, a `Launch` out, every problem reported at once. The code that runs it is in
sglang_engine: `process` and `supervisor` for a worker, `foreground` for `python engine.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from dotenv import dotenv_values, load_dotenv

from common.masking import MASK, Mask, is_secret_name
from common.settings import TRUE, ConfigurationError
from common.variables import VARIABLES, WAVERLESS_VARIABLES, read_variables
from sglang_engine import foreground, gpus, hub, options, start_time
from sglang_engine.contradictions import contradictions
from sglang_engine.early_start import EarlyStart, start_early
from sglang_engine.gpus import Machine
from sglang_engine.hub import HubModel
from sglang_engine.launch import Launch, Setting
from sglang_engine.options import Option, masked, option_of, size_of, values_of, variable_name
from sglang_engine.presets import PRESETS, Preset
from sglang_engine.spelling import HUB_VARIABLES, nearest_names
from sglang_engine.vllm_names import VLLM_NAMES

# Names from RunPod's official SGLang and vLLM workers that mean the same as one of SGLang's options.
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
_PLAIN_HTTP = "the worker reaches its engine over plain HTTP, on this machine; TLS ends at the platform"
_ONE_MACHINE = "one worker is one machine; scale out with more workers"

# Options that a user cannot set: the worker depends on them, or they make no sense in it.
RESERVED: dict[str, str] = {
    "CONFIG": "a file could set options without the worker knowing; set their variables instead",
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
    "DISAGGREGATION_MODE": "separate prefill and decode need two engines and a router; a worker has one engine",
    "ENCODER_ONLY": "such an engine answers no requests",
}

_MODEL_OVERRIDES = "use JSON_MODEL_OVERRIDE_ARGS"
_PACED = "STREAM_FLUSH_MS paces the outputs of streams"
_ROLE = "the role is always `assistant`"

# Variables from other versions and other workers that are not options of this SGLang, and what to set instead.
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
    "ENABLE_LOG_REQUESTS": "use LOG_REQUESTS",
    "DISABLE_LOG_STATS": "use LOG_LEVEL=warning",
    "UVICORN_LOG_LEVEL": "use LOG_LEVEL_HTTP",
    "ENABLE_PIECEWISE_CUDA_GRAPH": "use CUDA_GRAPH_BACKEND_PREFILL",
    "CUDA_GRAPH_SIZES": "use CUDA_GRAPH_BS_DECODE",
    "ENABLE_CHUNKED_PREFILL": "it is always on; CHUNKED_PREFILL_SIZE=-1 turns it off",
    "ENABLE_EXPERT_PARALLEL": "use EP_SIZE",
    "NUM_REDUNDANT_EXPERTS": "use EP_NUM_REDUNDANT_EXPERTS",
    "SCHEDULING_POLICY": "use SCHEDULE_POLICY",
    "GUIDED_DECODING_BACKEND": "use GRAMMAR_BACKEND",
    "STRUCTURED_OUTPUTS_CONFIG": "use GRAMMAR_BACKEND",
    "GENERATION_CONFIG": "use SAMPLING_DEFAULTS",
    "OVERRIDE_GENERATION_CONFIG": "use PREFERRED_SAMPLING_PARAMS",
    "HF_OVERRIDES": _MODEL_OVERRIDES,
    "ROPE_SCALING": _MODEL_OVERRIDES,
    "ROPE_THETA": _MODEL_OVERRIDES,
    "TOKENIZER_REVISION": "the tokenizer is taken at the model's REVISION",
    "LORA_MODULES": "use LORA_PATHS",
    "MAX_LORAS": "use MAX_LORAS_PER_BATCH",
    "MAX_CPU_LORAS": "use MAX_LOADED_LORAS",
    "SPECULATIVE_CONFIG": "use SPECULATIVE_ALGORITHM and the other SPECULATIVE_… options",
    "SPECULATIVE_METHOD": "use SPECULATIVE_ALGORITHM",
    "SPECULATIVE_MODEL": "use SPECULATIVE_DRAFT_MODEL_PATH",
    "NUM_SPECULATIVE_TOKENS": "use SPECULATIVE_NUM_DRAFT_TOKENS",
    "NGRAM_PROMPT_LOOKUP_MAX": "use SPECULATIVE_ALGORITHM=NGRAM",
    "ENABLE_AUTO_TOOL_CHOICE": "TOOL_CALL_PARSER is enough",
    "DEFAULT_BATCH_SIZE": _PACED,
    "DEFAULT_MIN_BATCH_SIZE": _PACED,
    "DEFAULT_BATCH_SIZE_GROWTH_FACTOR": _PACED,
    "RAW_OPENAI_OUTPUT": "answers of OpenAI's routes are always in OpenAI's form",
    "OPENAI_RESPONSE_ROLE": _ROLE,
    "RESPONSE_ROLE": _ROLE,
    "REQUEST_TIMEOUT": "use REQUEST_TIMEOUT_SECONDS",
    "VLLM_STARTUP_TIMEOUT": "use STARTUP_TIMEOUT_SECONDS",
    "VLLM_PORT": "use PORT",
    "VLLM_EXTRA_ARGS": "use SGLANG_EXTRA_ARGS, with SGLang's flags",
    "VLLM_CONFIG_FILE": "set the variables of the options instead",
}

# What GLM-4.7-Flash needs, from its model card (https://huggingface.co/zai-org/GLM-4.7-Flash); 0.9 of the GPU's memory
# and loopback are this worker's choice. The image sets the same, but for HOST and PORT. An empty variable in the
# environment turns one off.
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

# These configure the default algorithm; if that is turned off or replaced, they do not apply.
_EAGLE_DEFAULTS = ("SPECULATIVE_NUM_STEPS", "SPECULATIVE_EAGLE_TOPK", "SPECULATIVE_NUM_DRAFT_TOKENS")

# AGENT=true, for coding agents. GLM-4.7 thinks between its tool calls, but its chat template leaves the reasoning of
# earlier turns out of the prompt unless told otherwise, which also makes each turn's prompt differ from what is cached
# (https://docs.z.ai/guides/capabilities/thinking-mode: preserved thinking).
AGENT_VARIABLES: dict[str, str] = {"DEFAULT_CHAT_TEMPLATE_KWARGS": '{"clear_thinking": false}'}
# 2: the grammar holds every tool call to the schema of its parameters (SGLang 0.5.23, ToolStrictLevel).
AGENT_ENVIRONMENT: dict[str, str] = {"SGLANG_TOOL_STRICT_LEVEL": "2"}
# What agents bring along: a system prompt of some 20,000 tokens, then the files that they read.
AGENT_CONTEXT_TOKENS = 65_536

AUTO, OFF = "auto", "off"
EXTRA_ARGS = "SGLANG_EXTRA_ARGS"

# The image's environment, one NAME=value per line, written when it is built: what it sets is a default, which a preset
# may replace, and not the user's choice.
IMAGE_FILE = Path(__file__).with_name("image.env")
ENV_FILE = Path(".env")


def _options() -> dict[str, Option]:
    table = options.load()
    by_name = {name: option for option in table for name in (option.name, *option.aliases)}
    return by_name | {name: by_name[known] for name, known in RUNPOD_NAMES.items()}


# Environment variable -> launch option, for every spelling of every option's flag, and for the names above.
OPTIONS: dict[str, Option] = _options()


def configure_here(environ: Mapping[str, str], image: Mapping[str, str]) -> Launch:
    """The engine's configuration on this machine: looks at its GPUs if the preset depends on them.

    Raises ConfigurationError as `configure` does.
    """
    return configure(environ, image, gpus.look(environ) if _preset_name(environ, image) == AUTO else None)


def launch_early(argv: list[str], environ: Mapping[str, str]) -> EarlyStart | None:
    """Start the engine of a deployed worker, before its program is imported; else None.

    None too if anything about the settings or the command line is unusual: what comes later says so.
    """
    is_deployed = any(environ.get(f"{platform}_WEBHOOK_GET_JOB") for platform in ("RUNPOD", "WAVERLESS"))
    if argv or not is_deployed or environ.get("MODE", "").strip().lower() not in ("", "queue"):
        return None
    if importlib.util.find_spec("sglang") is None:
        return None
    try:
        return start_early(configure_here(environ, read_image_file()), environ)
    except ConfigurationError:
        return None


def configure(environ: Mapping[str, str], image: Mapping[str, str], machine: Machine | None = None) -> Launch:
    """The engine's configuration. Also checks the worker's own variables.

    machine: see `plan`. Raises ConfigurationError with the problems of both.
    """
    errors: list[ConfigurationError] = []
    launch: Launch | None = None
    try:
        launch = plan(environ, image, machine)
    except ConfigurationError as error:
        errors.append(error)
    try:
        read_variables(environ)
    except ConfigurationError as error:
        errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if launch is None or errors:
        raise ConfigurationError([problem for error in errors for problem in error.problems])
    return launch


def plan(environ: Mapping[str, str], image: Mapping[str, str] | None = None, machine: Machine | None = None) -> Launch:
    """What to launch. The environment's variables win over a preset, then the image's variables, then the defaults.

    machine: the GPUs that `PRESET=auto` chooses by; None if nobody has looked, and then it chooses nothing. Raises
    ConfigurationError with every problem at once: a value that is not accepted, two names of one option with different
    values, a reserved option, GPUs that no variant of the model fits.
    """
    problems: list[str] = []
    notes: list[str] = []
    preset = _preset(environ, image or {}, machine, problems, notes)
    chosen = _choose(environ, image or {}, preset, problems)
    is_settled = not problems  # which value each option has; each may still be wrong by itself
    arguments: list[str] = []
    refused: set[str] = set()
    for setting in chosen.values():
        option = OPTIONS[setting.name]
        if not setting.value:
            continue
        try:
            arguments += option.arguments(setting.value, setting.name)
            option.check_range(setting.value)
        except ValueError as error:
            problems.append(f"{setting.name}={_shown(option, setting.value)}: expected {error}")
            refused.add(option.flag)
    extra = _extra_arguments(environ, problems)
    given = {flag: setting.value for flag, setting in chosen.items()} | dict(values_of(extra))
    for flag, name in (("--model-path", "MODEL_NAME"), ("--host", "HOST"), ("--port", "PORT")):
        if not given.get(flag):
            problems.append(f"{name} is empty: {_MUST_BE_KNOWN[flag]}")
    if given.get("--port") and "--port" not in refused and not _is_port(given["--port"]):
        problems.append(f"PORT={given['--port']!r}: expected a port, from 1 to 65535")
    if not _is_sendable(given.get("--api-key") or ""):
        problems.append("API_KEY: expected ASCII characters, as it is sent in a header")
    names = {flag: setting.name for flag, setting in chosen.items()}
    if is_settled:
        problems += contradictions(given, refused, lambda flag: names.get(flag, variable_name(flag)))
    if problems:
        raise ConfigurationError(problems)
    return Launch(
        arguments=(*arguments, *extra),
        settings=tuple(chosen.values()),
        host=given["--host"],
        port=int(given["--port"]),
        served_model_name=given.get("--served-model-name") or given["--model-path"],
        api_key=given.get("--api-key"),
        models=_hub_models(given),
        download_folder=given.get("--download-dir") or None,
        environment=tuple(AGENT_ENVIRONMENT.items()) if _is_agent(environ) else (),
        notes=tuple(notes),
        warnings=(*_undone(preset, chosen), *(_too_short(chosen) if _is_agent(environ) else ())),
    )


def _undone(preset: Preset | None, chosen: Mapping[str, Setting]) -> Iterator[str]:
    """What empty variables take away from a preset."""
    for name, value in preset.variables.items() if preset is not None else ():
        setting = chosen.get(OPTIONS[name].flag)
        if value and setting is not None and not setting.value:
            yield (
                f"{setting.name} is empty, which undoes {name}={value} of the preset {preset.name if preset else ''}; "
                f"leave {setting.name} out to keep it"
            )


def _too_short(chosen: Mapping[str, Setting]) -> Iterator[str]:
    """That the context is short for an agent."""
    setting = chosen.get("--context-length")
    if setting is not None and setting.value and size_of(setting.value) < AGENT_CONTEXT_TOKENS:
        yield (
            f"AGENT=true, but {setting.name}={setting.value} ({setting.source}): coding agents send prompts of "
            f"{AGENT_CONTEXT_TOKENS:,} tokens and more"
        )


_MUST_BE_KNOWN = {
    "--model-path": "there is no model to serve",
    "--host": "the worker must know where its engine listens",
    "--port": "the worker must know where its engine listens",
}


def _is_sendable(key: str) -> bool:
    """Whether a key arrives as it was sent, whatever encoding each side takes a header to have."""
    return key == key.strip() and all(" " <= character <= "~" for character in key)


def _is_port(text: str) -> bool:
    try:
        return 1 <= int(text) <= 65535
    except ValueError:
        return False


def read_image_file(path: Path = IMAGE_FILE) -> dict[str, str]:
    """The variables that the image sets; empty outside a container."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _choose(
    environ: Mapping[str, str], image: Mapping[str, str], preset: Preset | None, problems: list[str]
) -> dict[str, Setting]:
    """The setting for each flag, in the table's order: the environment over a preset, the image and the defaults."""
    by_user, by_image = _split(environ, image)
    layers = [
        ("default", DEFAULTS),
        ("image", by_image),
        (f"preset {preset.name}" if preset else "", preset.variables if preset else {}),
        ("AGENT", AGENT_VARIABLES if _is_agent(environ) else {}),
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
    numbers = [chosen[OPTIONS[name].flag] for name in _EAGLE_DEFAULTS if OPTIONS[name].flag in chosen]
    if not all(setting.value for setting in numbers):  # EAGLE takes all of them or none
        for setting in numbers:
            if setting.source in ("default", "image"):
                del chosen[OPTIONS[setting.name].flag]
    revision, model = chosen.get("--revision"), chosen.get("--model-path")
    if revision and model and revision.source == "image" != model.source:
        del chosen["--revision"]  # it belongs to the model that the image was built with
    order = {option.flag: None for option in OPTIONS.values()}
    return {flag: chosen[flag] for flag in order if flag in chosen}


def _preset(
    environ: Mapping[str, str],
    image: Mapping[str, str],
    machine: Machine | None,
    problems: list[str],
    notes: list[str],
) -> Preset | None:
    name = _preset_name(environ, image)
    if name not in ("", OFF, AUTO, *PRESETS):
        problems.append(f"PRESET={name!r}: expected one of {', '.join(PRESETS)}, {AUTO}, {OFF}")
    if name != AUTO or machine is None:
        return PRESETS.get(name)
    if not machine.cards:
        without = f"PRESET=auto: no GPU is visible ({machine.problem})"
        if "PRESET" in environ:
            advice = "give the container one (docker: --gpus all)"
            raise ConfigurationError([f"{without}; {advice}"], check="gpu", is_lasting=False)
        notes.append(f"{without}: nothing is chosen, and the defaults, for 80 GB, count")
        return None
    try:
        choice = gpus.choose(machine.cards, split=_split_asked_for(environ))
    except ValueError as error:
        problems.append(f"PRESET=auto: {error}")
        return None
    notes.append(f"PRESET=auto takes {choice.preset.name}: {choice.why}")
    return choice.preset


def _preset_name(environ: Mapping[str, str], image: Mapping[str, str]) -> str:
    """The preset that is asked for. The image's own counts only where nothing else names the model."""
    if "PRESET" not in environ and _names_model(environ, image):
        return OFF
    return environ.get("PRESET", image.get("PRESET", "")).strip().lower()


def _is_by_image(name: str, environ: Mapping[str, str], image: Mapping[str, str]) -> bool:
    return name in environ and image.get(name) == environ[name]


def _names_model(environ: Mapping[str, str], image: Mapping[str, str]) -> bool:
    """Whether the user has named a model."""
    by_user, _ = _split(environ, image)
    in_extra = "--model-path" in dict(values_of(_extra_arguments(environ, [])))
    return in_extra or any(value and OPTIONS[name].flag == "--model-path" for name, value in by_user.items())


def _split_asked_for(environ: Mapping[str, str]) -> int | None:
    """Over how many GPUs the user splits the model; 1 for whole copies of it; None if nothing is said."""
    given = {OPTIONS[name].flag: environ[name].strip() for name in OPTIONS if environ.get(name, "").strip()}
    given |= dict(values_of(_extra_arguments(environ, [])))
    split = given.get("--tp-size", "")
    return int(split) if split.isdigit() and int(split) else 1 if given.get("--dp-size") else None


def _is_agent(environ: Mapping[str, str]) -> bool:
    return environ.get("AGENT", "").strip().lower() in TRUE


def _split(environ: Mapping[str, str], image: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The options' variables that the user set, and those that still have the image's values."""
    known = {name: environ[name].strip() for name in OPTIONS if name in environ}
    by_image = {name: value for name, value in known.items() if _is_by_image(name, environ, image)}
    return {name: value for name, value in known.items() if name not in by_image}, by_image


def _settings(source: str, variables: Mapping[str, str], problems: list[str]) -> dict[str, Setting]:
    """One layer, by flag. An empty value counts: it turns off the layers below it."""
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
        problems.append(f"{EXTRA_ARGS} cannot be split as a shell does: {str(error).lower()}")
        return []
    for word in words:
        option = option_of(word.partition("=")[0])
        if option is not None and option.name in RESERVED:
            problems.append(f"{EXTRA_ARGS}: {option.flag} is reserved: {RESERVED[option.name]}")
    return words


def _hub_models(given: Mapping[str, str]) -> tuple[HubModel, ...]:
    revision = given.get("--revision") or None
    draft_revision = given.get("--speculative-draft-model-revision") or None
    named = [
        HubModel("--model-path", given["--model-path"], revision),
        HubModel("--tokenizer-path", given.get("--tokenizer-path", ""), revision),
        HubModel("--speculative-draft-model-path", given.get("--speculative-draft-model-path", ""), draft_revision),
    ]
    # `[name=]path …`, or a JSON array; anything that is not a path on this disk counts as a repository on the hub.
    others = [word.rpartition("=")[2] for word in given.get("--lora-paths", "").split()]
    others.append(given.get("--speculative-token-map", ""))
    return (
        *(model for model in named if hub.is_repository(model.repository)),
        *(HubModel("", other) for other in others if other and not Path(other).exists()),
    )


def warnings_for(environ: Mapping[str, str]) -> Iterator[str]:
    """Warnings about variables that have no effect: misspelt ones, and ones from other versions."""
    version = options.sglang_version()
    known = {*OPTIONS, *(variable.name for variable in VARIABLES), *WAVERLESS_VARIABLES, EXTRA_ARGS, "PRESET"}
    known |= {*HUB_VARIABLES}
    for name in sorted(environ):
        if name in known or not environ[name].strip():
            continue
        if name in RENAMED:
            yield f"{name} is ignored: it is not an option of SGLang {version}; {RENAMED[name]}"
        elif name in VLLM_NAMES:
            yield f"{name} is ignored: it is an option of vLLM, and SGLang {version} has none that means the same"
        elif near := nearest_names(name, known):
            yield f"{name} is ignored: it is not an option of SGLang {version}; did you mean {' or '.join(near)}?"


def start_limit_warnings(launch: Launch, environ: Mapping[str, str]) -> Iterator[str]:
    """A warning where RunPod would give up on the worker before its engine can be ready. Looks at the disk."""
    values = read_variables(environ)
    yield from start_time.warnings_for(
        launch,
        environ,
        limit_seconds=values[start_time.VARIABLE],
        startup_timeout_seconds=values["STARTUP_TIMEOUT_SECONDS"],
    )


def _shown(option: Option, value: str) -> str:
    return MASK if option.is_secret else repr(value)


def main() -> int:
    """Serve SGLang alone, in place of this process; or with `--print`, show what would be run."""
    parser = argparse.ArgumentParser(
        prog="python engine.py",
        description="Serve SGLang alone, in the foreground, as the environment configures it.",
        allow_abbrev=False,
    )
    parser.add_argument("--print", action="store_true", help="show the command line and every setting; start nothing")
    parser.add_argument(
        "--health", action="store_true", help="exit with 0 if the engine on this machine is ready, else 1"
    )
    arguments = parser.parse_args()
    in_file = dotenv_values(ENV_FILE).keys() - os.environ.keys()
    load_dotenv(ENV_FILE)  # what the environment has already wins
    mask, image = Mask.from_environ(os.environ), read_image_file()
    for warning in warnings_for(os.environ) if not arguments.health else ():
        print(mask(f"warning: {warning}"), file=sys.stderr)
    try:
        launch = (configure if arguments.health else configure_here)(os.environ, image)
    except ConfigurationError as error:
        for problem in error.problems:
            print(mask(problem), file=sys.stderr)
        return 2
    if arguments.health:
        return 0 if foreground.is_healthy(launch) else 1
    for note in (*(f"warning: {warning}" for warning in launch.warnings), *launch.notes):
        print(mask(note), file=sys.stderr)
    mask.add(launch.secrets)
    for warning in start_limit_warnings(launch, os.environ):
        print(mask(f"warning: {warning}"), file=sys.stderr)
    if arguments.print:
        print(mask(_overview(launch, os.environ, image, in_file)))
        return 0
    foreground.serve(launch, mask)


def _overview(
    launch: Launch, environ: Mapping[str, str], image: Mapping[str, str], in_file: Collection[str] = ()
) -> str:
    """The command line, and every setting with its source. in_file: what comes from the file `.env`."""
    rows = [
        (
            setting.name,
            _shown_setting(setting),
            ".env" if setting.source == "environment" and setting.name in in_file else setting.source,
        )
        for setting in (*launch.settings, *_other_settings(environ, image))
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [launch.shown_command(), ""]
    lines += [f"{name:<{widths[0]}}  {value:<{min(widths[1], 60)}}  {source}" for name, value, source in rows]
    return "\n".join(lines)


def _shown_setting(setting: Setting) -> str:
    if setting.name == EXTRA_ARGS:
        return shlex.join(masked(shlex.split(setting.value)))
    option = OPTIONS.get(setting.name)
    is_secret = is_secret_name(setting.name) or (option is not None and option.is_secret)
    return MASK if is_secret and setting.value else setting.value or "(off)"


def _other_settings(environ: Mapping[str, str], image: Mapping[str, str]) -> Iterator[Setting]:
    """What is not an option of SGLang: the preset, the extra arguments, the worker's own variables."""
    defaults = {"PRESET": "", EXTRA_ARGS: ""} | {variable.name: variable.default for variable in VARIABLES}
    for name, default in defaults.items():
        given = environ.get(name, image.get(name, ""))
        value = given.strip()
        if not value and not default:
            continue
        source = "default" if not value else "image" if image.get(name) == given else "environment"
        yield Setting(name, value or default, source)


if __name__ == "__main__":
    sys.exit(main())
