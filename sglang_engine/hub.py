"""Finds complete models on disk, in Hugging Face's cache layout, so that nobody asks the hub; and watches downloads.

`python -m sglang_engine.hub MODEL REVISION CACHE` checks a download, for a build that must not succeed without it.

    <cache>/models--org--name/refs/main             the commit that a branch or tag points to
    <cache>/models--org--name/snapshots/<commit>/   the files, usually links to ../../blobs/…
    <cache>/models--org--name/blobs/                their contents; `….incomplete` while they are downloaded

A file appears in its snapshot only when it is complete, so a half-downloaded model is one that lacks files. The
download itself is done by the engine, with huggingface_hub, which keeps complete files, fetches what is missing, and
makes sure that each file is fetched by only one of the processes that share a volume.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Where an image keeps the model that it was built with, and where RunPod puts an endpoint's cached model
# (https://docs.runpod.io/serverless/endpoints/model-caching).
BAKED_CACHE = Path("/opt/models/hub")
RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.\w+")
# Formats of weights, in the order in which SGLang 0.5.23 looks for them in a folder (DefaultModelLoader).
_SPLIT_FORMATS = (".safetensors", ".bin")
_SINGLE_FORMATS = (".pt", ".gguf")
# A complete model has one of these, or a repository's own tokenizer, which is complete if its configuration is.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")

GB = 1e9
PROGRESS_SECONDS = 10.0  # between two progress lines


@dataclass(frozen=True)
class HubModel:
    """A model on the hub, and the flag that names it; without a flag, one that only SGLang can find (an adapter)."""

    flag: str
    repository: str
    revision: str | None = None


def caches(environ: Mapping[str, str], download_folder: str | None = None) -> list[Path]:
    """Where models may be, in search order; the last one is where downloads go.

    download_folder: SGLang's --download-dir, which is used in place of the hub's own cache.
    """
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    own = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub"
    return [BAKED_CACHE, RUNPOD_CACHE, Path(download_folder or own).expanduser()]


def is_repository(model: str) -> bool:
    """Whether a model's name is that of a repository on the hub, rather than a folder or a URL."""
    return bool(_REPOSITORY.fullmatch(model)) and not Path(model).exists()


def find_model(repository: str, revision: str | None, where: list[Path]) -> Path | None:
    """The snapshot of a model that is completely on disk; None if it is missing or incomplete."""
    folders = (folder for cache in where for folder in _folders(cache, repository))
    return next((found for folder in folders if (found := _in_folder(folder, revision))), None)


def model_folder(cache: Path, repository: str) -> Path:
    """Where huggingface_hub puts a model in a cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def _folders(cache: Path, repository: str) -> Iterator[Path]:
    """Where a cache may have a model: under its name, then under one that differs in case.

    RunPod's cached models can be in a folder whose name is in lower case (runpod-workers/worker-vllm, issue 310).
    """
    exact = model_folder(cache, repository)
    yield exact
    with suppress(OSError):
        others = sorted(path for path in cache.iterdir() if path.name.lower() == exact.name.lower())
        yield from (path for path in others if path.name != exact.name)


def _in_folder(model: Path, revision: str | None) -> Path | None:
    snapshots = model / "snapshots"
    if revision and _COMMIT.fullmatch(revision):
        return _whole(snapshots / revision)
    with suppress(OSError, ValueError):
        commit = (model / "refs" / (revision or "main")).read_text().strip()
        if commit and (snapshots / commit).is_dir():
            return _whole(snapshots / commit)
    # A platform's cache need not have references, nor the snapshot that one names.
    return _newest_whole(snapshots) if revision is None else None


def _newest_whole(snapshots: Path) -> Path | None:
    """The newest that is complete; of two that are equally old always the same, however the disk lists them."""
    with suppress(OSError):
        folders = [folder for folder in snapshots.iterdir() if folder.is_dir()]
        latest = sorted(folders, key=lambda folder: (folder.stat().st_mtime, folder.name), reverse=True)
        return next((folder for folder in latest if _whole(folder)), None)
    return None


def _whole(snapshot: Path) -> Path | None:
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):  # an index is anything
        names = {path.name for path in snapshot.iterdir() if path.is_file()}  # a dangling link is not a file
        has_tokenizer = any(name in names for name in _TOKENIZERS) or any(name.endswith(".tiktoken") for name in names)
        if "config.json" in names and has_tokenizer and _has_all_weights(snapshot, names):
            return snapshot
    return None


def _has_all_weights(snapshot: Path, names: set[str]) -> bool:
    """Whether all of the weights are there, in the format that SGLang will load: the first one with any files."""
    for suffix in _SPLIT_FORMATS:
        if files := {name for name in names if name.endswith(suffix)}:
            indexes = [snapshot / name for name in names if name.endswith(f"{suffix}.index.json")]
            return _all_named(indexes, files) if indexes else _all_numbered(files)
    return any(name.endswith(_SINGLE_FORMATS) for name in names)


def _all_named(indexes: list[Path], files: set[str]) -> bool:
    """Whether every file that an index names is there."""
    maps = [json.loads(index.read_text(encoding="utf-8"))["weight_map"] for index in indexes]
    return all(set(weights.values()) <= files for weights in maps)


def _all_numbered(files: set[str]) -> bool:
    """Whether every numbered file is there, according to the others' names: `…-00001-of-00003.…`."""
    shards = [match for name in files if (match := _SHARD.fullmatch(name))]
    return all(sum(other[1] == shard[1] for other in shards) == int(shard[2]) for shard in shards)


class DownloadWatch:
    """A download's progress, seen from outside: by how the model's folder grows."""

    def __init__(self, repository: str, revision: str | None, cache: Path, environ: Mapping[str, str]) -> None:
        """environ: for HF_ENDPOINT and HF_TOKEN. The hub is asked once how large the model is."""
        self._repository = repository
        self._revision = revision
        self._cache = cache
        self._hub = environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self._token = environ.get("HF_TOKEN")
        self._began: tuple[float, int] | None = None
        self._before = 0
        self._total: int | None = None
        self._has_asked = False

    async def tell(self, say: Callable[[str], object]) -> None:
        """Say how far it has got, every PROGRESS_SECONDS if more has come; return when the model is complete."""
        while not find_model(self._repository, self._revision, [self._cache]):
            if said := await self.progress():
                say(said)
            await asyncio.sleep(PROGRESS_SECONDS)

    async def progress(self) -> str | None:
        """A sentence on how far it has got; None if nothing has come since the last call. Takes 5 s at most."""
        now, done = time.monotonic(), sum(self._sizes())
        if self._began is None:
            self._began = now, done
        grown, self._before = done > max(self._before, self._began[1]), done
        if not grown:
            return None
        if not self._has_asked:
            self._has_asked, self._total = True, await self._ask_total()
        rate = (done - self._began[1]) / max(now - self._began[0], 1e-6)
        if self._total is None or self._total < done:
            return f"downloading {self._repository}: {done / GB:.3g} GB so far, {rate / 1e6:.0f} MB/s"
        return (
            f"downloading {self._repository}: {done / GB:.3g} of {self._total / GB:.3g} GB, {rate / 1e6:.0f} MB/s, "
            f"about {_duration((self._total - done) / rate)} left"
        )

    def _sizes(self) -> Iterator[int]:
        with suppress(OSError):
            for path in (model_folder(self._cache, self._repository) / "blobs").iterdir():
                with suppress(OSError):
                    yield path.stat().st_size

    async def _ask_total(self) -> int | None:
        """The size of the weights that will be downloaded."""
        try:
            sizes = await _listed_sizes(self._hub, self._repository, self._revision, self._token)
        except ListingError:
            return None
        return sum(sizes[name] for name in _weights(sizes)) or sum(sizes.values())


class ListingError(Exception):
    """The hub's list of a model's files cannot be fetched; the message says why."""


async def _listed_sizes(hub: str, repository: str, revision: str | None, token: str | None) -> dict[str, int]:
    """The files of a model in the hub's list, with their sizes in bytes. Raises ListingError, after 5 s at most."""
    import httpx  # takes 0.2 s, which a start without a download can save

    url = f"{hub}/api/models/{repository}/tree/{revision or 'main'}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx.AsyncClient(timeout=5.0, follow_redirects=True) as client:
            files = (await client.get(url, headers=headers)).raise_for_status().json()
        return {file["path"]: int(file["size"]) for file in files}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ListingError(f"{url}: {type(error).__name__}") from error


def _weights(names: Iterable[str]) -> set[str]:
    """The files with weights that SGLang downloads: safetensors if there are any, since it prefers them."""
    of_each = ({name for name in names if name.endswith(suffix)} for suffix in _SPLIT_FORMATS)
    return next((found for found in of_each if found), set())


async def missing_parts(repository: str, revision: str, cache: Path, environ: Mapping[str, str]) -> list[str]:
    """What is missing from a cache, by this module's own check and by the hub's list; empty if it is complete."""
    snapshot = find_model(repository, revision, [cache])
    if snapshot is None:
        return [f"{repository} ({revision}) is not complete in {cache}: its configuration, tokenizer and weights"]
    hub = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        sizes = await _listed_sizes(hub, repository, revision, environ.get("HF_TOKEN"))
    except ListingError as error:
        return [f"the hub's list of its files cannot be fetched: {error}"]
    there = {path.name: path.stat().st_size for path in snapshot.iterdir() if path.is_file()}
    expected = _weights(sizes) | (there.keys() & sizes.keys())
    return [
        f"{name} has {there.get(name, 0)} bytes, but {sizes[name]} on the hub"
        for name in sorted(expected)
        if there.get(name) != sizes[name]
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def main(repository: str, revision: str, cache: str) -> None:
    """Exit with 1 and say why, unless the cache has the complete model."""
    if missing := asyncio.run(missing_parts(repository, revision, Path(cache), os.environ)):
        sys.exit("\n".join(missing))


if __name__ == "__main__":
    main(*sys.argv[1:])
