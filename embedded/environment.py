"""The variables with which the worker serves the tiny GLM on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
MODEL_FOLDER = FOLDER.parent / ".cache" / "tiny-glm"
INTRODUCTION = "introduction.json"  # in the model's folder: what the page says about it


def engine_environment(environ: Mapping[str, str], model_folder: Path = MODEL_FOLDER) -> dict[str, str]:
    """`environ` with what SGLang needs on a CPU, and the tiny model in place of GLM-4.7-Flash.

    Everything else keeps the worker's defaults: the served name and the parsers are those of the real model.
    """
    python_path = [str(FOLDER / "stand_in"), environ.get("PYTHONPATH", "")]
    return {
        **environ,
        "PYTHONPATH": ":".join(filter(None, python_path)),
        "MODEL_NAME": str(model_folder),
        "PAGE_INTRODUCTION": str(model_folder / INTRODUCTION),
        "DEVICE": "cpu",
        "ATTENTION_BACKEND": "torch_native",  # the only one without compiled CPU kernels
        "SPECULATIVE_ALGORITHM": "",  # EAGLE's kernels exist for GPUs only
        "CONTEXT_LENGTH": "4096",
        "MAX_TOTAL_TOKENS": "8192",
        "MEM_FRACTION_STATIC": "0.5",
        "CONSTRAINED_JSON_DISABLE_ANY_WHITESPACE": "true",  # else a model this small writes nothing but newlines
        "SLEEP_ON_IDLE": "true",  # else an idle scheduler keeps one core busy
        "SGLANG_USE_CPU_ENGINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # for a model this small, more threads cost more than they gain
        "TORCHDYNAMO_DISABLE": "1",  # else the expert router is compiled with g++ at the first request
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",  # else a crash waits a minute for a GPU core dump
        "PYTHONWARNINGS": "ignore",
    }
