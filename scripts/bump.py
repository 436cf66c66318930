"""Writes the newest SGLang image, RunPod SDK, digests of base images and the page's libraries wherever they are pinned.

Run once a week by .github/workflows/bump.yml, as `python3 -m scripts.bump`. With `--facts` it writes nothing, and
compares what the documentation says of images and RunPod's pools with what there is.

SGLang's own pins keep it compatible with torch, transformers and the rest of the CPU engine's lock. The lock's other
packages are left alone, and the checks of the pull request show whether that still works.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts import facts, vendor

REPOSITORY = Path(__file__).parents[1]

RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:\.post(\d+))?")

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# Where each version is, as the text right before it.
SGLANG_PLACES = {
    "Dockerfile": [r"lmsysorg/sglang:v"],
    "docker-compose.yml": [r"lmsysorg/sglang:v"],
    "docs/deploy.md": [r"lmsysorg/sglang:v"],
    "pyproject.toml": [r'"sglang==', r"lmsysorg/sglang:v"],
    "embedded/requirements.txt": [r"\nsglang=="],
}
# A digest names the bytes of an image, a tag only whatever was pushed last. The files keep both.
SGLANG_IMAGE_FILES = ("Dockerfile", "docker-compose.yml")
PYTHON_IMAGE, PYTHON_IMAGE_FILES = "python:3.11-slim-bookworm", ("embedded/Dockerfile",)
RUNPOD_PLACES = {"Dockerfile": [r'"runpod=='], "embedded/requirements.txt": [r"\nrunpod=="]}
# The libraries of the local API's page, whose files are in this repository.
PAGE_PLACES = {package.name: {"scripts/vendor.py": [rf'"{package.name}",\s+"']} for package in vendor.PACKAGES}


def main() -> int:
    """Look up the versions, and write any that are newer; or compare the facts."""
    if sys.argv[1:] == ["--facts"]:
        return facts.main(REPOSITORY, has_image=digest_of)
    sglang = newest(releases("sglang"))
    image = f"lmsysorg/sglang:v{sglang}"
    if digest := digest_of(image):
        write(REPOSITORY, SGLANG_PLACES, sglang)
        write_digest(REPOSITORY, SGLANG_IMAGE_FILES, image, digest)
    else:
        print(f"sglang {sglang} has no image yet", file=sys.stderr)
    if digest := digest_of(PYTHON_IMAGE):
        write_digest(REPOSITORY, PYTHON_IMAGE_FILES, PYTHON_IMAGE, digest)
    runpod = newest(releases("runpod"))
    write(REPOSITORY, RUNPOD_PLACES, runpod)
    project = REPOSITORY / "pyproject.toml"
    project.write_text(runpod_range(project.read_text(encoding="utf-8"), runpod), encoding="utf-8")
    for package, places in PAGE_PLACES.items():
        write(REPOSITORY, places, npm_release(package))
    subprocess.run([sys.executable, "-m", "scripts.vendor"], cwd=REPOSITORY, check=True)
    return 0


def releases(package: str) -> list[str]:
    """The versions of a package that pip finds. Raises LookupError if it finds none."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^Available versions: (.+)$", said.stdout, re.MULTILINE)
    if not found:
        raise LookupError(f"pip finds no versions of {package}: {said.stderr.strip()}")
    return found[1].split(", ")


def npm_release(package: str) -> str:
    """The version of a package that npm would install now. Raises LookupError if it finds none."""
    command = ["npm", "view", package, "version"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode or not RELEASE.fullmatch(said.stdout.strip()):
        raise LookupError(f"npm finds no release of {package}: {said.stderr.strip()}")
    return said.stdout.strip()


def digest_of(image: str) -> str | None:
    """The digest, `sha256:…`, under which the registry has this image now; None if it has none."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    digest = said.stdout.strip()
    return digest if said.returncode == 0 and DIGEST.fullmatch(digest) else None


def write_digest(folder: Path, files: Iterable[str], image: str, digest: str) -> None:
    """Put the digest after each mention of the image in these files. Raises LookupError for a file without one."""
    for name in files:
        path = folder / name
        mention = rf"{re.escape(image)}(?:@{DIGEST.pattern})?(?![\w.-])"
        text, count = re.subn(mention, f"{image}@{digest}", path.read_text(encoding="utf-8"))
        if not count:
            raise LookupError(f"{name} has no {image}")
        path.write_text(text, encoding="utf-8")


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
