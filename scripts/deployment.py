"""What scripts/deploy asks RunPod's REST API v2 for: the body of one request, made from a preset and settings.

Planning is pure, as in engine.py: settings in, a `Deployment` out, every problem at once. The schema of the API is at
https://api.runpod.io/v2/openapi.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from common.masking import MASK, Mask, is_secret_name
from common.settings import ConfigurationError
from engine import OPTIONS, configure, warnings_for
from gateway.http_server.settings import HttpSettings
from sglang_engine.launch import Launch
from sglang_engine.options import values_of
from sglang_engine.presets import KV_BYTES_PER_TOKEN, PRESETS, STATIC_SHARE, Preset
from sglang_engine.start_time import SIZES_GB, VARIABLE, limit_to_set

TYPES = {"queue": "QUEUE", "http": "LOAD_BALANCER"}
REQUEST_COUNT = "REQUEST_COUNT"  # the scaler that it sets; a queue may have the other one, by hand

# Each card's serverless pool (https://docs.runpod.io/references/gpu-types#gpu-pools; those of Blackwell cards:
# https://docs.runpod.io/flash/configuration/gpu-types; the B300's is a guess). With a key, the catalogue is asked.
POOLS: dict[str, str] = {
    "h100": "ADA_80_PRO",
    "h100-nvl": "ADA_80_PRO",
    "a100-80gb": "AMPERE_80",
    "h200": "HOPPER_141",
    "b200": "BLACKWELL_180",
    "b300": "BLACKWELL_180",
    "rtx-pro-6000": "BLACKWELL_96",
    "l40s-fp8": "ADA_48_PRO",
    "l40-fp8": "ADA_48_PRO",
    "rtx6000ada-fp8": "ADA_48_PRO",
    "a6000-awq": "AMPERE_48",
    "a40-awq": "AMPERE_48",
    "rtx5090": "ADA_32_PRO",
    "rtx4090-awq": "ADA_24",
    "rtx3090-awq": "AMPERE_24",
    "a5000-awq": "AMPERE_24",
    "l4-awq": "AMPERE_24",
}
# Smaller cards of the same pool.
EXCLUDED_TYPES: dict[str, tuple[str, ...]] = {
    "h100-nvl": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"),
    "b300": ("NVIDIA B200",),
}

MIN_CUDA_VERSION = "13.0"  # lmsysorg/sglang's images are CUDA 13 since 0.5.20
EXECUTION_TIMEOUT_MS = {"queue": 600_000, "http": 330_000}  # RunPod's default; what a load balancer allows at most
IDLE_SECONDS = 60  # a worker that stays costs a minute, a cold start costs more

BASE_DISK_GB = 30  # compiled kernels, temporary files, logs
DISK_PER_WEIGHT = 1.1  # files beside the weights, and a part that is written twice

REQUEST_TOKENS = 4000  # of a usual request, prompt and answer together
UNKNOWN_REQUESTS = 32  # that a worker can hold of a model whose size is not known
MAX_REQUESTS_PER_WORKER = 300  # the worker's own bound where nothing else is known
# The next worker starts when this share of a worker's room is taken, so that there is some left while it starts.
SCALE_AT = 2 / 3

# A value that RunPod itself fills in from its secrets: https://docs.runpod.io/pods/templates/secrets.
_REFERENCE = re.compile(r"\{\{ *RUNPOD_SECRET_\w+ *\}\}")


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. gpu: a preset's name. kind: `queue` or `http`. volume, registry: ids."""

    image: str
    gpu: str
    kind: str = "queue"
    name: str = ""
    max_workers: int = 3
    volume: str = ""
    registry: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployment:
    """A checked endpoint that does not exist yet."""

    preset: Preset
    body: dict[str, Any]
    """Of POST /v2/serverless."""
    served_model_name: str
    notes: tuple[str, ...]
    """What the user should know before it is created."""
    mask: Mask

    @property
    def gpus_at_most(self) -> int:
        """How many GPUs all its workers have together."""
        return int(self.body["workers"]["max"]) * int(self.body["gpu"]["count"])

    def shown(self) -> str:
        """The body as JSON, with secrets masked."""
        return shown(self.body, self.mask)


def deployment(wanted: Wanted) -> Deployment:
    """Check the settings as `engine.py --print` does, and make the request. Raises ConfigurationError."""
    problems = list(_problems(wanted))
    preset = PRESETS.get(wanted.gpu)
    environment = {"PRESET": wanted.gpu, **wanted.environment, **({"MODE": "http"} if wanted.kind == "http" else {})}
    launch: Launch | None = None
    ports: list[int] = []
    try:
        launch = configure(environment, {})
        if wanted.kind == "http":
            ports = _ports(environment)
    except ConfigurationError as error:
        problems += [problem for problem in error.problems if not problem.startswith("PRESET=")]  # --gpu is named
    if preset is None or launch is None or problems:
        raise ConfigurationError(problems)
    size_gb, known = _size_gb(launch, preset)
    environment = {**environment, VARIABLE: environment.get(VARIABLE) or str(limit_to_set(size_gb))}
    mask = mask_of(environment, launch)
    body: dict[str, Any] = {
        "name": wanted.name or launch.served_model_name,
        "type": TYPES[wanted.kind],
        "image": wanted.image,
        "disk": disk_gb(0 if wanted.volume else size_gb),
        "env": environment,
        "gpu": {**_pools(preset), "count": _gpu_count(launch), "minCudaVersion": MIN_CUDA_VERSION},
        "workers": {"min": 0, "max": wanted.max_workers},
        "scaling": {
            "type": REQUEST_COUNT,
            "requestCount": request_count(launch, preset, environment, size_gb=size_gb, is_known=known),
        },
        "timeout": EXECUTION_TIMEOUT_MS[wanted.kind],
        "flashboot": "FLASHBOOT",
    }
    if wanted.kind == "http":
        # RunPod refuses an idle time-out for a queue that is scaled by request count.
        body["workers"]["idleTimeout"] = IDLE_SECONDS
        body["ports"] = [f"{port}/http" for port in ports]
    if wanted.volume:
        body["networkVolumes"] = [wanted.volume]
    if wanted.registry:
        body["registry"] = wanted.registry
    notes = tuple(_notes(wanted, environment, model=_model(launch), size_gb=size_gb, size_is_known=known))
    return Deployment(preset, body, launch.served_model_name, notes, mask)


def _problems(wanted: Wanted) -> Iterator[str]:
    if wanted.gpu not in PRESETS:
        yield f"--gpu {wanted.gpu!r}: expected one of {', '.join(PRESETS)}{_hint(wanted.gpu.lower())}"
    if not wanted.image or re.search(r"\s", wanted.image):
        yield f"--image {wanted.image!r}: expected an image's name, such as ghcr.io/<owner>/glm-flash-worker:0.2.0"
    if wanted.max_workers < 1:
        yield f"--max-workers {wanted.max_workers}: expected at least 1"
    if wanted.environment.get("PRESET", wanted.gpu) != wanted.gpu:
        yield f"--env PRESET={wanted.environment['PRESET']}: --gpu {wanted.gpu} sets it"
    if wanted.environment.get("MODE", "").lower() not in ("", "http" if wanted.kind == "http" else "queue"):
        yield f"--env MODE={wanted.environment['MODE']}: --type sets it"


def _hint(gpu: str) -> str:
    """The presets that were probably meant: those that have the word in their name, or else the nearest one."""
    near = [name for name in PRESETS if gpu and gpu in name] or get_close_matches(gpu, PRESETS, n=1)
    return f" (do you mean {' or '.join(near)}?)" if near else ""


def _ports(environment: Mapping[str, str]) -> list[int]:
    """The ports of a load-balancing endpoint, as the worker reads them there. Raises ConfigurationError."""
    settings = HttpSettings.from_environ({**environment, "RUNPOD_ENDPOINT_ID": "to be created"})
    return sorted({settings.port, settings.health_port})


def _notes(
    wanted: Wanted, environment: Mapping[str, str], *, model: str, size_gb: float, size_is_known: bool
) -> Iterator[str]:
    yield from warnings_for(environment)
    if "@" not in wanted.image and ":" not in wanted.image.rpartition("/")[2]:
        yield f"{wanted.image} has no tag, which means `latest`: workers that start later may run another build"
    elif wanted.image.endswith(":latest"):
        yield f"{wanted.image} moves: workers that start later may run another build"
    if not size_is_known:
        yield (
            f"the model's size is not known here: the disk and {VARIABLE} are set for {size_gb:.0f} GB, the most that "
            "the card holds, and the scaler's value is a guess"
        )
    if not wanted.volume:
        yield (
            "without --volume, each new host downloads the model into the container's disk, at the GPU's price; "
            f"or name {model} as the endpoint's Model in RunPod's console, for which the REST API has no field"
        )
    if wanted.kind == "http" and environment.get("API_KEY"):
        yield (
            "API_KEY: RunPod's load balancer asks for its own key in the Authorization header, so that clients cannot "
            "send another one there; leave it out"
        )


def _pools(preset: Preset) -> dict[str, Any]:
    """From the documentation's tables; `with_catalogue` has the truth."""
    excluded = EXCLUDED_TYPES.get(preset.name)
    return {"pools": [POOLS[preset.name]], **({"excludedTypes": list(excluded)} if excluded else {})}


def with_catalogue(gpu: Mapping[str, Any], preset: Preset, catalogue: list[dict[str, Any]]) -> dict[str, Any]:
    """A body's `gpu` with the pools that RunPod's catalogue has the card in, less that pool's smaller cards.

    Raises ConfigurationError if the card is in no serverless pool.
    """
    pools = sorted({str(entry["pool"]) for entry in _cards(preset, catalogue)})
    if not pools:
        raise ConfigurationError([f"RunPod's catalogue has no serverless pool with {preset.card}; try another --gpu"])
    memory_gb = min(int(entry["memory"]) for entry in _cards(preset, catalogue))
    smaller = sorted(
        str(entry["id"]) for entry in catalogue if entry.get("pool") in pools and int(entry["memory"]) < memory_gb
    )
    kept = {name: value for name, value in gpu.items() if name not in ("pools", "excludedTypes")}
    return {"pools": pools, **({"excludedTypes": smaller} if smaller else {}), **kept}


def price_per_hour(preset: Preset, catalogue: list[dict[str, Any]]) -> float | None:
    """The highest serverless price of one such GPU, in USD an hour; None if the catalogue has none."""
    prices = [entry.get("price", {}).get("serverless") for entry in _cards(preset, catalogue)]
    return max((float(price) for price in prices if price), default=None)


def _cards(preset: Preset, catalogue: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The catalogue's entries for the preset's card. A slice of a card (MIG) is another card."""
    return [
        entry
        for entry in catalogue
        if entry.get("pool") and preset.is_for(str(entry["id"])) and " MIG " not in str(entry["id"])
    ]


def disk_gb(weights_gb: float) -> int:
    """The container's disk for weights of so many GB that are downloaded into it (0: they are elsewhere)."""
    return BASE_DISK_GB + 10 * math.ceil(weights_gb * DISK_PER_WEIGHT / 10)


def request_count(
    launch: Launch, preset: Preset, environment: Mapping[str, str], *, size_gb: float, is_known: bool = True
) -> int:
    """The scaler's value: how many requests a worker has when the next one is to be started.

    Tokens of KV cache over those of a usual request, and of that SCALE_AT. With tensor parallelism the weights are
    split, and each GPU holds the whole KV cache (MLA has one head of it); data parallelism has as many caches as GPUs.
    """
    values = dict(values_of(list(launch.arguments)))
    share = float(values.get("--mem-fraction-static") or STATIC_SHARE)
    tensor, data = (_number(values, flag) for flag in ("--tp-size", "--dp-size"))
    tokens = (preset.memory_gb * share - size_gb / tensor) * 1e9 / KV_BYTES_PER_TOKEN * data
    most = [MAX_REQUESTS_PER_WORKER, int(tokens) // REQUEST_TOKENS if is_known else UNKNOWN_REQUESTS]
    bounds = (environment.get("MAX_CONCURRENCY", ""), values.get("--max-running-requests", ""))
    most += [int(digits[0]) for text in bounds if (digits := re.search(r"\d+\Z", text.strip()))]
    return max(1, int(min(most) * SCALE_AT))


def _gpu_count(launch: Launch) -> int:
    """The GPUs of one worker: with attention data parallelism, the ranks share those of tensor parallelism."""
    values = dict(values_of(list(launch.arguments)))
    data = 1 if "--enable-dp-attention" in launch.arguments else _number(values, "--dp-size")
    return data * _number(values, "--tp-size") * _number(values, "--pp-size")


def _number(values: Mapping[str, str], flag: str) -> int:
    return int(values.get(flag) or 1)


def _model(launch: Launch) -> str:
    return dict(values_of(list(launch.arguments)))["--model-path"]


def _size_gb(launch: Launch, preset: Preset) -> tuple[float, bool]:
    """The weights' size, and whether it is known."""
    known = SIZES_GB.get(_model(launch))
    return (known, True) if known is not None else (preset.memory_gb * STATIC_SHARE, False)


def mask_of(environment: Mapping[str, str], launch: Launch | None = None) -> Mask:
    """A mask for the secrets of an endpoint's environment."""
    mask = Mask.from_environ({name: value for name, value in environment.items() if not _REFERENCE.fullmatch(value)})
    if launch is not None:
        mask.add(launch.secrets)
    return mask


def shown(body: Mapping[str, Any], mask: Mask) -> str:
    """A request's body as JSON for people: no secret in it, however short; a reference to a secret is none."""
    copy = dict(body)
    if "env" in copy:
        copy["env"] = {name: _shown_value(name, value, mask) for name, value in copy["env"].items()}
    return json.dumps(copy, indent=2, ensure_ascii=False)


def _shown_value(name: str, value: str, mask: Mask) -> str:
    option = OPTIONS.get(name)
    is_secret = is_secret_name(name) or (option is not None and option.is_secret)
    if is_secret and value and not _REFERENCE.fullmatch(value):
        return MASK
    return mask(value)


# --- Changes of an endpoint that exists ---------------------------------------------------------------------------


def changes(endpoint: Mapping[str, Any], wanted: Wanted, given: frozenset[str]) -> Deployment:
    """The body of a PATCH that brings an endpoint to what is wanted; of `wanted`, only what is `given` counts.

    given: the names of the fields of Wanted that were on the command line. What else is in the body follows from them:
    another card has other pools, another model another disk. What was changed by hand stays. `env` replaces all of an
    endpoint's variables (https://docs.runpod.io/api-reference-v2), so that the others are sent along.

    Raises ConfigurationError.
    """
    had = dict(endpoint.get("env") or {})
    old = _as_wanted(endpoint, had)
    if "kind" in given and wanted.kind != old.kind:
        raise ConfigurationError([f"--type {wanted.kind}: the endpoint is of the other type, which cannot be changed"])
    environment = had | dict(wanted.environment)
    if ("gpu" in given and wanted.gpu != old.gpu) or wanted.environment.get("MODEL_NAME"):
        # The limit belonged to the model that was.
        environment[VARIABLE] = wanted.environment.get(VARIABLE, "")
    fields = {name: getattr(wanted, name) for name in given} | {"environment": _without_preset(environment)}
    new = replace(old, **fields)
    if new.gpu not in PRESETS:
        raise ConfigurationError([f"--gpu is needed: the endpoint's PRESET is none of {', '.join(PRESETS)}"])
    after = deployment(new)
    try:
        before = deployment(old).body
    except ConfigurationError:
        before = {}  # it does not work as it is: everything is set anew
    body = {
        name: value
        for name, value in after.body.items()
        if name not in ("type", "workers", "env") and value != before.get(name)
    }
    if endpoint.get("scaling", {}).get("type", REQUEST_COUNT) != REQUEST_COUNT:
        body.pop("scaling", None)
    if "gpu" in body and (endpoint.get("gpu") or {}).get("allowedCudaVersions"):
        # They exclude the floor, and stay unless they are cleared in the same request.
        body["gpu"] = {name: value for name, value in body["gpu"].items() if name != "minCudaVersion"}
    if after.body["env"] != had:
        body["env"] = after.body["env"]
    if "max_workers" in given and new.max_workers != endpoint["workers"].get("max"):
        body["workers"] = {**endpoint["workers"], "max": new.max_workers}
    return replace(after, body=body)


def _as_wanted(endpoint: Mapping[str, Any], environment: Mapping[str, str]) -> Wanted:
    """An endpoint that exists, as the command line would have asked for it."""
    volumes = endpoint.get("networkVolumes") or [""]
    return Wanted(
        image=str(endpoint.get("image") or ""),
        gpu=environment.get("PRESET", ""),
        kind="http" if endpoint.get("type") == TYPES["http"] else "queue",
        name=str(endpoint["name"]),
        max_workers=max(1, int(endpoint["workers"].get("max", 1))),  # RunPod sets it to 0 after a week without requests
        volume=str(volumes[0]),
        registry=str(endpoint.get("registry") or ""),
        environment=_without_preset(environment),
    )


def _without_preset(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PRESET"}
