"""Models are found on disk complete or not at all; what the engine is started with; a download's progress."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.web_server import serving
from engine import plan
from sglang_engine import hub
from sglang_engine.hub import DownloadWatch, find_model
from sglang_engine.launch import Launch
from tests.hub import Hub

pytestmark = pytest.mark.anyio

MODEL = "zai-org/GLM-4.7-Flash"
COMMIT, OTHER = "a" * 40, "b" * 40
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
WHOLE = ["config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS]


def put(cache: Path, files: list[str], *, commit: str = COMMIT, reference: str | None = "main") -> Path:
    """A snapshot as huggingface_hub leaves it: links to blobs."""
    model = cache / "models--zai-org--GLM-4.7-Flash"
    snapshot = model / "snapshots" / commit
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    if reference:
        (model / "refs" / reference).write_text(commit)
    for name in files:
        blob = model / "blobs" / f"{commit[:4]}-{name}"
        blob.write_text(json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True))}) if "index" in name else "x")
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_whole_model_is_found(tmp_path: Path) -> None:
    snapshot = put(tmp_path, WHOLE)
    assert find_model(MODEL, None, [tmp_path / "nowhere", tmp_path]) == snapshot
    assert find_model(MODEL, "main", [tmp_path]) == snapshot
    assert find_model(MODEL, COMMIT, [tmp_path]) == snapshot


@pytest.mark.parametrize("missing", WHOLE)
def test_model_that_lacks_a_file_is_not(tmp_path: Path, missing: str) -> None:
    put(tmp_path, [name for name in WHOLE if name != missing])
    found = find_model(MODEL, None, [tmp_path])
    # Without the index, the names of the shards tell how many there are.
    assert (found is not None) == missing.endswith("index.json")


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], True),
        (["config.json", "tokenizer.model", "pytorch_model.bin"], True),
        (["config.json", "tokenizer.json"], False),
        (["config.json", "tokenizer.json", *SHARDS[:2]], False),
        (["tokenizer.json", "model.safetensors"], False),
        ([], False),
    ],
)
def test_what_makes_a_model_whole(tmp_path: Path, files: list[str], whole: bool) -> None:
    put(tmp_path, files)
    assert (find_model(MODEL, None, [tmp_path]) is not None) is whole


def test_file_whose_content_is_gone_is_missing(tmp_path: Path) -> None:
    snapshot = put(tmp_path, WHOLE)
    (snapshot / SHARDS[1]).resolve().unlink()
    assert find_model(MODEL, None, [tmp_path]) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": {}}}', "[" * 100_000])
def test_index_that_is_none_is_not_trusted(tmp_path: Path, text: str) -> None:
    snapshot = put(tmp_path, WHOLE)
    (snapshot / "model.safetensors.index.json").resolve().write_text(text)
    assert find_model(MODEL, None, [tmp_path]) is None


def test_revision_decides_between_snapshots(tmp_path: Path) -> None:
    old, new = put(tmp_path, WHOLE, reference="v1"), put(tmp_path, WHOLE[:3], commit=OTHER)
    assert find_model(MODEL, "v1", [tmp_path]) == old
    assert find_model(MODEL, None, [tmp_path]) is None, "main is the newer one, and half downloaded"
    assert find_model(MODEL, "v2", [tmp_path]) is None
    put(tmp_path, WHOLE[3:], commit=OTHER)
    assert find_model(MODEL, None, [tmp_path]) == new


def test_snapshot_without_references_is_taken_as_it_is(tmp_path: Path) -> None:
    snapshot = put(tmp_path, WHOLE, reference=None)
    assert find_model(MODEL, None, [tmp_path]) == snapshot
    assert find_model(MODEL, "v1", [tmp_path]) is None


@pytest.mark.parametrize("broken", ["a file beside it", "an index that is not JSON", "no files at all"])
def test_broken_snapshot_does_not_hide_one_that_is_whole(tmp_path: Path, broken: str) -> None:
    snapshot = put(tmp_path, WHOLE, reference=None)
    os.utime(snapshot, (1, 1))
    if broken == "a file beside it":
        (snapshot.parent / ".DS_Store").touch()
    elif broken == "an index that is not JSON":
        other = put(tmp_path, WHOLE, commit=OTHER, reference=None)
        (other / "model.safetensors.index.json").resolve().write_text("{")
    else:
        put(tmp_path, [], commit=OTHER, reference=None)
    assert find_model(MODEL, None, [tmp_path]) == snapshot


@pytest.mark.parametrize("reference", [b"c" * 40, b"", b"\n", b"\xff\xfe"])
def test_reference_to_a_snapshot_that_is_not_there_is_as_good_as_none(tmp_path: Path, reference: bytes) -> None:
    snapshot = put(tmp_path, WHOLE)
    (snapshot.parents[1] / "refs" / "main").write_bytes(reference)
    assert find_model(MODEL, None, [tmp_path]) == snapshot
    assert find_model(MODEL, "main", [tmp_path]) is None, "a revision that is asked for is not guessed"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HOME": "/a"}, "/a/hub"),
        ({"HF_HOME": "/a", "HF_HUB_CACHE": "/b"}, "/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path("~/.cache/huggingface/hub").expanduser())),
    ],
)
def test_downloads_go_where_hugging_face_s_library_puts_them(environ: dict[str, str], folder: str) -> None:
    assert hub.caches(environ)[-1] == Path(folder)
    assert hub.caches(environ, "/d")[-1] == Path("/d")
    assert hub.caches(environ)[:2] == [hub.BAKED_CACHE, hub.RUNPOD_CACHE]


Started = Callable[..., Launch]


@pytest.fixture
def started(tmp_path: Path) -> Started:
    def start(**environ: str) -> Launch:
        variables = {"HF_HUB_CACHE": str(tmp_path)} | environ
        return plan(variables).with_models_on_disk(variables)

    return start


def value_of(launch: Launch, flag: str) -> str:
    return launch.arguments[launch.arguments.index(flag) + 1]


def test_engine_starts_offline_from_the_snapshot(tmp_path: Path, started: Started) -> None:
    snapshot = put(tmp_path, WHOLE)
    launch = started()
    assert value_of(launch, "--model-path") == str(snapshot)
    assert value_of(launch, "--served-model-name") == "glm-4.7-flash"
    assert launch.is_offline
    assert launch.child_environ({})["HF_HUB_OFFLINE"] == "1"
    assert launch.download_watch({"HF_HUB_CACHE": str(tmp_path)}) is None


def test_engine_completes_what_is_half_downloaded(tmp_path: Path, started: Started) -> None:
    put(tmp_path, WHOLE[:4])
    launch = started()
    assert value_of(launch, "--model-path") == MODEL
    assert not launch.is_offline
    assert "HF_HUB_OFFLINE" not in launch.child_environ({})
    assert launch.download_watch({"HF_HUB_CACHE": str(tmp_path)}) is not None


def test_model_keeps_its_name_in_a_folder(tmp_path: Path, started: Started) -> None:
    put(tmp_path, WHOLE)
    assert value_of(started(SERVED_MODEL_NAME=""), "--served-model-name") == MODEL


@pytest.mark.parametrize("extra", [f"--model-path {MODEL}", f"--model={MODEL}", f"--model-path={MODEL}"])
def test_model_of_the_extra_arguments_is_found_too(tmp_path: Path, started: Started, extra: str) -> None:
    snapshot = put(tmp_path, WHOLE)
    launch = started(MODEL_NAME="other/model", SGLANG_EXTRA_ARGS=extra)
    assert str(snapshot) in launch.arguments[-1]


@pytest.mark.parametrize(
    "more",
    [
        {"TOKENIZER_PATH": "other/tokenizer"},
        {"SPECULATIVE_DRAFT_MODEL_PATH": "other/draft"},
        {"LORA_PATHS": "a=other/adapter"},
        {"SPECULATIVE_TOKEN_MAP": "other/map/freq.pt"},
    ],
)
def test_engine_is_online_while_anything_else_is_on_the_hub(
    tmp_path: Path, started: Started, more: dict[str, str]
) -> None:
    snapshot = put(tmp_path, WHOLE)
    launch = started(**more)
    assert value_of(launch, "--model-path") == str(snapshot)
    assert not launch.is_offline


def test_folder_needs_no_hub(tmp_path: Path, started: Started) -> None:
    launch = started(MODEL_NAME=str(tmp_path))
    assert value_of(launch, "--model-path") == str(tmp_path)
    assert launch.is_offline


async def test_download_tells_how_much_has_come(tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"x" * 4_000_000)
    (source / "model.bin").write_bytes(b"x" * 9_000_000)
    server = Hub(MODEL, source)
    blobs = hub.model_folder(cache, MODEL) / "blobs"
    async with serving(server.app(), "127.0.0.1", 0) as port:
        watch = DownloadWatch(MODEL, None, cache, {"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
        assert await watch.progress() is None
        blobs.mkdir(parents=True)
        (blobs / "abc.incomplete").write_bytes(b"x" * 1_000_000)
        said = await watch.progress()
        assert await watch.progress() is None, "nothing has come since"
    assert said is not None
    assert said.startswith(f"downloading {MODEL}: 0.001 of 0.004 GB, ")
    assert "MB/s, about " in said


async def test_download_is_told_of_without_the_hub_s_help_too(tmp_path: Path) -> None:
    blobs = hub.model_folder(tmp_path, MODEL) / "blobs"
    blobs.mkdir(parents=True)
    watch = DownloadWatch(MODEL, None, tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9"})
    await watch.progress()
    (blobs / "abc.incomplete").write_bytes(b"x" * 1_000_000)
    assert str(await watch.progress()).startswith(f"downloading {MODEL}: 0.001 GB so far, ")
