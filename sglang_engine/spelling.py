"""Names that were probably meant: one or two letters away from a known one."""

from __future__ import annotations

from collections.abc import Iterable

# Variables of the system and of other programs, which may look like one of ours by accident.
_FOREIGN = [
    "AWS_",
    "BASH",
    "CONDA",
    "CUDA_",
    "DEBIAN_",
    "GIT_",
    "GPG_",
    "HF_",
    "HUGGING",
    "HOME",
    "HOSTNAME",
    "JUPYTER_",
    "KUBERNETES_",
    "LANG",
    "LC_",
    "LD_",
    "LESS",
    "LIBRARY_",
    "LOGNAME",
    "LS_",
    "MAIL",
    "MASTER_",
    "MKL_",
    "NCCL_",
    "NV_",
    "NVIDIA_",
    "OLDPWD",
    "OMP_",
    "PATH",
    "PIP_",
    "PS1",
    "PUBLIC_",
    "PWD",
    "PYTEST_",
    "PYTHON",
    "PYTORCH_",
    "RUNPOD_",
    "SGL_",
    "SGLANG_",
    "SHELL",
    "SHLVL",
    "SSH_",
    "SSL_CERT_",
    "TERM",
    "TMPDIR",
    "TORCH",
    "TRITON_CACHE",
    "USER",
    "UV_",
    "VIRTUAL_",
    "WAVERLESS_",
    "XDG_",
    "_",
]


# Hugging Face's variables that users set. Others begin with HF_ too; none of them is as near to one of these as a slip.
HUB_VARIABLES = ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE")


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names nearest to this one, at most three, and at most two letters away (one for a short name)."""
    if name.startswith("HF_"):
        known = HUB_VARIABLES
    elif not name.isupper() or len(name) < 5 or name.startswith(tuple(_FOREIGN)):
        return []
    most = 2 if len(name) >= 8 else 1
    distances = [(distance(name, other, most), other) for other in known if abs(len(name) - len(other)) <= most]
    least = min((far for far, _ in distances), default=most + 1)
    return sorted(other for far, other in distances if far == least <= most)[:3]


def distance(one: str, other: str, most: int) -> int:
    """How many letters must be added, dropped, changed or swapped to turn one into the other; at most `most` + 1."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        now = [row]
        for column, against in enumerate(other, start=1):
            cost = min(last[column] + 1, now[-1] + 1, last[column - 1] + (letter != against))
            if before and column > 1 and letter == other[column - 2] and one[row - 2] == against:
                cost = min(cost, before[column - 2] + 1)
            now.append(cost)
        if min(now) > most:
            return most + 1
        before, last = last, now
    return last[-1]
