"""Writes the newest SGLang image and RunPod SDK everywhere they are pinned. Run by .github/workflows/bump.yml.

SGLang's own pins keep it compatible with torch, transformers and the rest of the CPU engine's lock. The lock's other
packages are left alone, and the checks of the pull request show whether that still works.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:\.post(\d+))?")

# Where each version is, as the text right before it.
SGLANG_PLACES = {
    "Dockerfile": [r"lmsysorg/sglang:v"],
    "docker-compose.yml": [r"lmsysorg/sglang:v"],
    "docs/deploy.md": [r"lmsysorg/sglang:v"],
    "pyproject.toml": [r'"sglang==', r"lmsysorg/sglang:v"],
    "embedded/requirements.txt": [r"\nsglang=="],
}
RUNPOD_PLACES = {"Dockerfile": [r'"runpod=='], "embedded/requirements.txt": [r"\nrunpod=="]}


def main() -> int:
    """Look up both versions, and write any that are newer."""
    sglang = newest(releases("sglang"))
    if has_image(f"lmsysorg/sglang:v{sglang}"):
        write(REPOSITORY, SGLANG_PLACES, sglang)
    else:
        print(f"sglang {sglang} has no image yet", file=sys.stderr)
    runpod = newest(releases("runpod"))
    write(REPOSITORY, RUNPOD_PLACES, runpod)
    project = REPOSITORY / "pyproject.toml"
    project.write_text(runpod_range(project.read_text(encoding="utf-8"), runpod), encoding="utf-8")
    return 0


def releases(package: str) -> list[str]:
    """The versions of a package that pip finds. Raises LookupError if it finds none."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^Available versions: (.+)$", said.stdout, re.MULTILINE)
    if not found:
        raise LookupError(f"pip finds no versions of {package}: {said.stderr.strip()}")
    return found[1].split(", ")


def has_image(name: str) -> bool:
    """Whether the registry has an image of this name."""
    command = ["docker", "manifest", "inspect", name]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def newest(names: Iterable[str]) -> str:
    """The highest release among tags or versions, without its `v`; candidates, variants and nightlies do not count."""
    releases = [match for name in names if (match := RELEASE.fullmatch(name))]
    if not releases:
        raise LookupError("no release among them")
    highest = max(releases, key=lambda match: tuple(int(part or 0) for part in match.groups()))
    return highest[0].removeprefix("v")


def write(folder: Path, places: dict[str, list[str]], version: str) -> None:
    """Put the version in its places, if it is newer. Raises LookupError for a place without a version."""
    for name, prefixes in places.items():
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for prefix in prefixes:
            text, count = re.subn(rf"({prefix})([\d.]+(?:\.?post\d+)?)", newer_of(version), text)
            if not count:
                raise LookupError(f"{name} has no {prefix}")
        path.write_text(text, encoding="utf-8")


def runpod_range(text: str, version: str) -> str:
    """pyproject.toml's text with the SDK's range for this version: one minor version, unless the range is newer."""
    major, minor = (int(part) for part in version.split(".")[:2])

    def replacement(match: re.Match[str]) -> str:
        if (int(match[1]), int(match[2])) >= (major, minor):
            return match[0]
        return f'"runpod>={major}.{minor},<{major}.{minor + 1}"'

    return re.sub(r'"runpod>=(\d+)\.(\d+),<\d+\.\d+"', replacement, text)


def newer_of(version: str) -> Callable[[re.Match[str]], str]:
    """The replacement for a pin: the version, unless the pin is newer."""

    def replacement(match: re.Match[str]) -> str:
        return match[1] + newest([version, match[2].rstrip(".")]) + ("." if match[2].endswith(".") else "")

    return replacement


if __name__ == "__main__":
    sys.exit(main())
