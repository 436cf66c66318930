"""Why an engine ended: turns its exit code and last output into a sentence that says what to change."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A cause that the engine's output reveals. `what` and `advice` complete "…: {what}; {advice}"."""

    pattern: re.Pattern[str]
    what: str
    advice: str
    check: str
    """One word for it, for the platform."""
    is_lasting: bool
    """Whether an engine that does not start for this cause would start on no other host either."""


@dataclass(frozen=True)
class Diagnosis:
    """Why an engine ended. text: a clause such as `exited with code 2 (usual cause: …; …)`; the rest as in `Cause`."""

    text: str
    check: str = "engine"
    is_lasting: bool = False


def _cause(pattern: str, what: str, advice: str, *, check: str, is_lasting: bool = False) -> Cause:
    return Cause(re.compile(pattern, re.IGNORECASE), what, advice, check, is_lasting)


# The wording is that of SGLang 0.5.23, PyTorch 2.x, huggingface_hub 1.x, transformers 5.x and the CUDA runtime. The
# first match counts, so narrow patterns come before wide ones.
CAUSES = (
    _cause(
        r"NVIDIA driver on your system is too old|driver version is insufficient|forward compatibility was attempted"
        r"|cudaErrorInsufficientDriver|cudaErrorSystemDriverMismatch|system has unsupported display driver",
        "the NVIDIA driver is older than the CUDA version of this image (CUDA 13)",
        "allow only hosts with CUDA 13 (on RunPod: the endpoint's allowed CUDA versions)",
        check="driver",
    ),
    _cause(
        r"Not enough memory\. Please try to increase --mem-fraction-static|leaves no room for the full"
        r"|leave no GPU memory for the KV cache"
        r"|KV cache.{0,40}(?:not enough|insufficient|no) memory",
        "not enough GPU memory for the KV cache next to the model's weights",
        "use a larger GPU, a quantised model (MODEL_NAME, QUANTIZATION) or more GPUs (TENSOR_PARALLEL_SIZE), or raise "
        "MEM_FRACTION_STATIC",
        check="kv_cache",
        is_lasting=True,
    ),
    _cause(
        r"CUDA out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory|cudaErrorMemoryAllocation"
        r"|CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA out of memory",
        "lower MEM_FRACTION_STATIC, MAX_RUNNING_REQUESTS or CHUNKED_PREFILL_SIZE, or use a larger GPU",
        check="gpu_memory",
        is_lasting=True,
    ),
    _cause(
        r"GatedRepoError|access (?:a )?gated repo|Access to model .{1,200} is restricted"
        r"|awaiting a review from the repo authors",
        "the model is gated, and this token has no access to it",
        "accept the model's terms on Hugging Face and set HF_TOKEN to a token of that account",
        check="model",
        is_lasting=True,
    ),
    _cause(
        r"RepositoryNotFoundError|Repository Not Found|is not a valid model identifier|is not a local folder"
        r"|RevisionNotFoundError|Can't load the configuration of|does not appear to have a file named"
        r"|HFValidationError",
        "the model was not found, or is private",
        "check MODEL_NAME and REVISION; a private model needs HF_TOKEN",
        check="model",
        is_lasting=True,
    ),
    _cause(
        r"outgoing traffic has been disabled|OfflineModeIsEnabled",
        "the model is not complete on disk, and the hub is not asked (HF_HUB_OFFLINE)",
        "check MODEL_NAME, REVISION and the files under HF_HOME, or set HF_HUB_OFFLINE=0",
        check="model",
        is_lasting=True,
    ),
    _cause(
        r"We couldn't connect to '|LocalEntryNotFoundError|httpx\.Connect\w+|requests\.exceptions\.ConnectionError"
        r"|Max retries exceeded with url",
        "the model hub cannot be reached",
        "check this host's network, HF_ENDPOINT and the proxy; a model that is on disk needs no hub",
        check="hub",
    ),
    _cause(
        r"address already in use|Errno 98|port \d+ is (?:not available|already in use|in use)",
        "a port is in use by another process",
        "set PORT to a free one",
        check="port",
    ),
    _cause(
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "give the container a larger disk (the bf16 weights are 62 GB), or a network volume",
        check="disk",
    ),
    _cause(
        r"No CUDA GPUs are available|Found no NVIDIA driver|Torch not compiled with CUDA|no CUDA-capable device",
        "no GPU is visible",
        "give the container a GPU (docker: --gpus all)",
        check="gpu",
    ),
    _cause(
        r"illegal memory access|device-side assert|unspecified launch failure|\bXid\b|uncorrectable ECC",
        "a GPU kernel failed",
        "if it happens again, set another ATTENTION_BACKEND or SPECULATIVE_ALGORITHM= (off), or replace the GPU",
        check="gpu",
    ),
    _cause(
        r"launch_server(?:\.py)?: error: |unrecognized arguments|invalid choice: ",
        "an option that SGLang does not accept",
        "the lines before it name the option; set its variable to another value",
        check="option",
        is_lasting=True,
    ),
)

# What a bare exit code usually means, if the output reveals nothing.
_CODES = {
    1: ("an error at start, such as a model that is not found or too little GPU memory", "its last output says more"),
    2: ("an option that SGLang does not accept", "its last output names the option"),
    128 + signal.SIGABRT: ("an assertion in native code, or NCCL", "its last output says more"),
    128 + signal.SIGBUS: ("too little shared memory", "give the container more (docker: --shm-size 16g)"),
    128 + signal.SIGKILL: (
        "killed from outside, usually out of memory",
        "give the container more memory, or lower MAX_RUNNING_REQUESTS",
    ),
    128 + signal.SIGSEGV: ("a crash in native code", "if it happens again, set another ATTENTION_BACKEND"),
    128 + signal.SIGTERM: ("stopped from outside", "find out who sent the signal"),
}


def diagnose(code: int | None, output: str = "") -> Diagnosis:
    """How a process ended, why, and what to do.

    code: as in `subprocess`, negative for a signal; None if it is not known. output: the last that it wrote.
    """
    how = describe_exit(code)
    for cause in CAUSES:
        if cause.pattern.search(output):
            return Diagnosis(f"{how} (cause: {cause.what}; {cause.advice})", cause.check, cause.is_lasting)
    if code is not None and (usual := _CODES.get(128 - code if code < 0 else code)):
        return Diagnosis(f"{how} (usual cause: {usual[0]}; {usual[1]})")
    return Diagnosis(f"{how} (cause unknown; its last output is in the worker's log)")


def describe_exit(code: int | None) -> str:
    """`exited with code 2`, `was killed by SIGKILL`, or `ended`."""
    if code is None:
        return "ended"
    if code < 0:
        return "was killed by " + next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return f"exited with code {code}"
