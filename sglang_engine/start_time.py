"""How long a start of the engine takes, by arithmetic, against the time that RunPod gives a worker.

Nothing here has been measured on a GPU: it is sizes divided by speeds, taken low, and a guess at what else there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from sglang_engine import hub
from sglang_engine.launch import Launch
from sglang_engine.options import values_of
from sglang_engine.presets import ALL_WEIGHTS, BF16

MINUTE = 60

# RunPod calls a worker that is not ready by then unhealthy; the variable on the endpoint extends it
# (https://docs.runpod.io/serverless/development/optimization).
VARIABLE = "RUNPOD_INIT_TIMEOUT"
PLATFORM_SECONDS = 7 * MINUTE

DOWNLOAD_GB_PER_SECOND = 0.125  # 1 Gbit/s from the hub
# A network volume has 0.2-0.4 GB/s (https://docs.runpod.io/storage/network-volumes). RunPod's cached models are under
# the same path and read faster, but which of both it is cannot be told from inside.
VOLUME_GB_PER_SECOND = 0.2
DISK_GB_PER_SECOND = 2.0  # the host's NVMe, where the image's files are
OTHER_SECONDS = 180.0  # imports, CUDA graphs, warm-up
RESERVE = 1.5  # how much longer than expected a start may take before the platform ends it

# Models whose size is known, in GB (10^9 bytes).
SIZES_GB = {weights.variables.get("MODEL_NAME", "zai-org/GLM-4.7-Flash"): weights.size_gb for weights in ALL_WEIGHTS}
DEFAULT_SIZE_GB = BF16.size_gb


def expected_seconds(size_gb: float, *, with_download: bool, is_in_image: bool = False) -> float:
    """How long a start takes with weights of so many GB, over a slow network, from a slow volume or the image."""
    download_seconds = size_gb / DOWNLOAD_GB_PER_SECOND if with_download else 0.0
    return download_seconds + size_gb / (DISK_GB_PER_SECOND if is_in_image else VOLUME_GB_PER_SECOND) + OTHER_SECONDS


def limit_to_set(size_gb: float, *, with_download: bool = True, is_in_image: bool = False) -> int:
    """The RUNPOD_INIT_TIMEOUT for weights of so many GB, in seconds: RESERVE times the expected start."""
    seconds = expected_seconds(size_gb, with_download=with_download, is_in_image=is_in_image)
    return MINUTE * math.ceil(RESERVE * seconds / MINUTE)


def warnings_for(
    launch: Launch, environ: Mapping[str, str], *, limit_seconds: float | None, startup_timeout_seconds: float
) -> Iterator[str]:
    """A sentence if RunPod would take the worker for a broken one before it can be ready.

    limit_seconds: RUNPOD_INIT_TIMEOUT, None if it is not set. Looks for the model on this machine's disks.
    """
    if not environ.get("RUNPOD_ENDPOINT_ID"):
        return  # only endpoints have the limit
    model = next((model.repository for model in launch.models if model.flag == "--model-path"), "")
    on_disk = launch.with_models_on_disk(environ)
    is_downloaded = any(model.flag == "--model-path" for model in on_disk.models)
    is_in_image = Path(dict(values_of(list(on_disk.arguments)))["--model-path"]).is_relative_to(hub.BAKED_CACHE)
    size_gb = SIZES_GB.get(model)
    limit = PLATFORM_SECONDS if limit_seconds is None else limit_seconds
    if size_gb is None:
        # Its size is not known here, and so the worker's own limit is the best that can be said.
        expected = startup_timeout_seconds if is_downloaded and limit_seconds is None else 0.0
        advice, what = math.ceil(startup_timeout_seconds), f"{model} has to be downloaded"
    else:
        expected = expected_seconds(size_gb, with_download=is_downloaded, is_in_image=is_in_image)
        advice = limit_to_set(size_gb, with_download=is_downloaded, is_in_image=is_in_image)
        path = "download, read" if is_downloaded else "read"
        what = f"to {path} and start {model}, {size_gb:g} GB, can take {expected:.0f} s"
    if limit >= expected and not (is_downloaded and limit_seconds is None):
        return
    unset = " (RunPod's default)" if limit_seconds is None else ""
    yield (
        f"RunPod calls a worker unhealthy that is not ready after {limit:g} s{unset}; {what}. "
        f"Set {VARIABLE}={advice} on the endpoint"
    )
