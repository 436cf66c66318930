"""What the documentation says of the world, compared with it: tags of images, and RunPod's pools.

Run by `python3 -m scripts.bump --facts`, which has no packages but Python's own.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sglang_engine.presets import PRESETS

CATALOGUE = "https://api.runpod.io/v2/catalog/gpus"
REQUEST_SECONDS = 30.0
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md")

_SGLANG_TAG = re.compile(r"lmsysorg/sglang:v([\w.-]*\w)")
_OWN_TAG = re.compile(r"glm-flash-worker:(\d+)\.(\d+)\.(\d+)")
# A row of docs/deploy.md's table of GPUs: card, preset, pool.
_ROW = re.compile(r"^\| [^|]+ \| `([\w-]+)` \| `([A-Z0-9_]+)` \|", re.MULTILINE)


def main(folder: Path, *, has_image: Callable[[str], object]) -> int:
    """Print what is wrong, a line each. Returns 1 if anything is. has_image: whether a registry has an image."""
    found = [*wrong_tags(folder), *missing_images(folder, has_image)]
    if key := os.environ.get("RUNPOD_API_KEY"):
        try:
            found += wrong_pools((folder / "docs/deploy.md").read_text(encoding="utf-8"), gpus(key))
        except (OSError, ValueError, KeyError) as error:
            found.append(f"RunPod's catalogue cannot be read: {type(error).__name__}")
    else:
        print("RUNPOD_API_KEY is not set: RunPod's pools are not compared", file=sys.stderr)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def _pages(folder: Path) -> Iterator[Path]:
    for pattern in PAGES:
        yield from sorted(folder.glob(pattern))


def wrong_tags(folder: Path) -> Iterator[str]:
    """Mentions of an SGLang image that the Dockerfile does not have, and of a worker older than this one."""
    dockerfile = (folder / "Dockerfile").read_text(encoding="utf-8")
    (current,) = set(_SGLANG_TAG.findall(dockerfile))
    project = (folder / "pyproject.toml").read_text(encoding="utf-8")
    own = re.search(r'^version = "(\d+)\.(\d+)\.(\d+)"', project, re.MULTILINE)
    if own is None:
        raise LookupError("pyproject.toml has no version")
    version = tuple(map(int, own.groups()))
    for page in _pages(folder):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(folder)
        for tag in set(_SGLANG_TAG.findall(text)) - {current}:
            yield f"{name}: lmsysorg/sglang:v{tag}, but the Dockerfile has v{current}"
        for tag in sorted(set(_OWN_TAG.findall(text))):
            if tuple(map(int, tag)) < version:
                yield f"{name}: glm-flash-worker:{'.'.join(tag)}, but this is {'.'.join(own.groups())}"


def missing_images(folder: Path, has_image: Callable[[str], object]) -> Iterator[str]:
    """SGLang images that the documentation names and the registry does not have."""
    named = {tag for page in _pages(folder) for tag in _SGLANG_TAG.findall(page.read_text(encoding="utf-8"))}
    for tag in sorted(named):
        if not has_image(f"lmsysorg/sglang:v{tag}"):
            yield f"lmsysorg/sglang:v{tag}: the registry has no such image"


def gpus(key: str) -> list[dict[str, Any]]:
    """RunPod's catalogue of GPU types. Raises OSError, ValueError or KeyError."""
    headers = {"Authorization": f"Bearer {key}", "User-Agent": "glm-flash-worker"}
    request = urllib.request.Request(os.environ.get("RUNPOD_CATALOGUE_URL", CATALOGUE), headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
        return list(json.load(answer)["gpus"])


def wrong_pools(page: str, catalogue: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Rows of the table of GPUs whose pool is not where the catalogue has the card."""
    rows = dict(_ROW.findall(page))
    if rows.keys() != PRESETS.keys():
        yield "docs/deploy.md: the table of GPUs does not have the presets"
    types = [(str(entry["id"]), entry["pool"]) for entry in catalogue if entry.get("pool")]
    for name in rows.keys() & PRESETS.keys():
        pools = {pool for product, pool in types if PRESETS[name].is_for(product) and " MIG " not in product}
        if rows[name] not in pools:
            there = f"in {', '.join(sorted(pools))}" if pools else "in no serverless pool"
            yield f"docs/deploy.md: {name} is said to be in {rows[name]}; RunPod's catalogue has it {there}"
