"""Why an engine ended, from its code and its own words."""

from __future__ import annotations

import pytest

from sglang_engine.failure_causes import CAUSES, describe_exit, diagnose

# Real last words: of SGLang 0.5.23, PyTorch 2.x, huggingface_hub 1.x and transformers 5.x.
LAST_WORDS = [
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
        "CUDA out of memory",
        "lower MEM_FRACTION_STATIC",
    ),
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: 0.5",
        "not enough GPU memory for the KV cache",
        "raise MEM_FRACTION_STATIC",
    ),
    (
        "ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.9. Raise",
        "not enough GPU memory for the KV cache",
        "raise MEM_FRACTION_STATIC",
    ),
    (
        "RepositoryNotFoundError: 401 Client Error.\nIf you are trying to access a private or gated repo, make sure",
        "the model was not found, or is private",
        "check MODEL_NAME",
    ),
    (
        "OSError: no/such is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'",
        "the model was not found, or is private",
        "check MODEL_NAME",
    ),
    (
        "huggingface_hub.errors.GatedRepoError: 403 Client Error.\n\nCannot access gated repo for url https://x.",
        "the model is gated",
        "set HF_TOKEN",
    ),
    (
        "LocalEntryNotFoundError: Cannot find the requested files and outgoing traffic has been disabled. To enable",
        "the model is not complete on disk, and the hub is not asked",
        "HF_HUB_OFFLINE=0",
    ),
    (
        "LocalEntryNotFoundError: An error happened\nOSError: We couldn't connect to 'https://huggingface.co' to load",
        "the model hub cannot be reached",
        "check this host's network",
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
        "the NVIDIA driver is older than the CUDA version of this image",
        "allow only hosts with CUDA 13",
    ),
    (
        "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
        "the NVIDIA driver is older than the CUDA version of this image",
        "allow only hosts with CUDA 13",
    ),
    (
        "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 30000): address already in use",
        "a port is in use by another process",
        "set PORT",
    ),
    ("OSError: [Errno 28] No space left on device", "the disk is full", "larger disk"),
    ("RuntimeError: No CUDA GPUs are available", "no GPU is visible", "--gpus all"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", "a GPU kernel failed", "ATTENTION_BACKEND"),
    ("launch_server.py: error: argument --dtype: invalid choice: 'f8'", "an option that SGLang", "another value"),
]


# For each of them: the check that the platform is told, and whether every other host would fail too.
VERDICTS = [
    ("gpu_memory", True),
    ("kv_cache", True),
    ("kv_cache", True),
    ("model", True),
    ("model", True),
    ("model", True),
    ("model", True),
    ("hub", False),
    ("driver", False),
    ("driver", False),
    ("port", False),
    ("disk", False),
    ("gpu", False),
    ("gpu", False),
    ("option", True),
]


@pytest.mark.parametrize(("output", "what", "advice"), LAST_WORDS, ids=[words[1] for words in LAST_WORDS])
def test_cause_is_recognised_in_the_output(output: str, what: str, advice: str) -> None:
    said = diagnose(1, f"loading weights\nTraceback\n{output}\nbye").text
    assert said.startswith(f"exited with code 1 (cause: {what}")
    assert advice in said


def test_every_cause_has_its_last_words_here() -> None:
    for cause in CAUSES:
        assert any(cause.pattern.search(output) for output, _, _ in LAST_WORDS), cause.what


@pytest.mark.parametrize(
    ("output", "check", "is_lasting"),
    [(output, *verdict) for (output, _, _), verdict in zip(LAST_WORDS, VERDICTS, strict=True)],
    ids=[words[1] for words in LAST_WORDS],
)
def test_cause_of_one_host_is_told_from_one_of_every_host(output: str, check: str, is_lasting: bool) -> None:
    why = diagnose(1, output)
    assert (why.check, why.is_lasting) == (check, is_lasting)


def test_unknown_cause_and_bare_code_may_be_the_host_s() -> None:
    assert {(diagnose(code).check, diagnose(code).is_lasting) for code in (1, 2, 77, -9, None)} == {("engine", False)}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (2, "exited with code 2 (usual cause: an option that SGLang does not accept; its last output names"),
        (137, "exited with code 137 (usual cause: killed from outside, usually out of memory; give the container more"),
        (-9, "was killed by SIGKILL (usual cause: killed from outside, usually out of memory; give the container more"),
        (-11, "was killed by SIGSEGV (usual cause: a crash in native code; "),
        (-7, "was killed by SIGBUS (usual cause: too little shared memory; "),
        (77, "exited with code 77 (cause unknown; its last output is in the worker's log)"),
        (0, "exited with code 0 (cause unknown; "),
        (-40, "was killed by signal 40 (cause unknown; "),
        (None, "ended (cause unknown; "),
    ],
)
def test_exit_without_telling_output_names_the_usual_cause(code: int | None, said: str) -> None:
    assert diagnose(code, "nothing special").text.startswith(said)
    assert diagnose(code).text.startswith(describe_exit(code))
