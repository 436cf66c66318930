"""Where kernels that are compiled on the spot are kept: on a volume, so that the next cold start finds them.

Each compiler has a variable of its own for its folder. SGLANG_CACHE_DIR would move all of them at once, but also what
holds for one host alone (which of its GPUs reach each other directly), and workers on several hosts share a volume.

Safe for several workers, by how each compiler writes: Triton, torch inductor and DeepGEMM write a file of its own and
rename it; FlashInfer takes a lock on a file. Their keys have the GPU's architecture, and the folder SGLang's version.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from sglang_engine.options import sglang_version

log = logging.getLogger("worker.engine")

OFF = "off"
# Variable -> folder below the cache; SGLang 0.5.23 sets the same (srt/environ.py, third_party_cache_defaults).
FOLDERS = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "SGLANG_DG_CACHE_DIR": "deep_gemm",  # SGLang hands it to DeepGEMM as DG_JIT_CACHE_DIR
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "nv",
}


def cache_folder(environ: Mapping[str, str], is_mount: Callable[[Path], bool] = os.path.ismount) -> Path | None:
    """KERNEL_CACHE_DIR; by default a folder on the volume that has HF_HOME; None without one, or if it is `off`."""
    given = environ.get("KERNEL_CACHE_DIR", "").strip()
    if given:
        return None if given.lower() == OFF else Path(given).expanduser()
    home = environ.get("HF_HOME", "").strip()
    if not home:
        return None
    folder = Path(home).expanduser()
    volume = next((place for place in (folder, *folder.parents) if is_mount(place)), None)
    return None if volume is None or volume == Path(volume.root) else volume / "kernel-cache"


def variables(environ: Mapping[str, str], is_mount: Callable[[Path], bool] = os.path.ismount) -> dict[str, str]:
    """The variables for the engine; those that the user has set win. Empty if the folder cannot be written to."""
    folder = cache_folder(environ, is_mount)
    if folder is None:
        return {}
    folder = folder / f"sglang-{sglang_version()}"
    try:
        for name in FOLDERS.values():
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("kernels are not kept: %s cannot be written to (%s; KERNEL_CACHE_DIR)", folder, error.strerror)
        return {}
    return {variable: str(folder / name) for variable, name in FOLDERS.items()}
