"""Caches as platforms and repositories really leave them: several formats of weights, names in another case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.web_server import serving
from scripts.worker_process import REPOSITORY
from sglang_engine.hub import find_model, missing_parts
from tests.hub import COMMIT, Hub

pytestmark = pytest.mark.anyio

MODEL = "zai-org/GLM-4.7-Flash"
BASE = ["config.json", "tokenizer.json"]
SAFETENSORS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
BIN = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
INDEXES = {"model.safetensors.index.json": SAFETENSORS, "pytorch_model.bin.index.json": BIN}


def put(cache: Path, files: list[str], folder: str = "models--zai-org--GLM-4.7-Flash") -> Path:
    snapshot = cache / folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in files:
        shards = INDEXES.get(name)
        (snapshot / name).write_text("x" if shards is None else json.dumps({"weight_map": dict(enumerate(shards))}))
    (cache / folder / "refs").mkdir()
    (cache / folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        (SAFETENSORS + BIN, True),
        (SAFETENSORS, True),  # the other format was not downloaded, as SGLang would not either
        (BIN, True),
        (SAFETENSORS[:1] + BIN, False),  # SGLang loads the first, of which there are any
        (SAFETENSORS + BIN[:1], True),
        (BIN[1:], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("seed", ["0", "1", "2", "3"])
def test_verdict_with_both_indexes_is_that_of_the_format_that_is_loaded(
    tmp_path: Path, weights: list[str], whole: bool, seed: str
) -> None:
    put(tmp_path, [*BASE, *INDEXES, *weights])
    asked = (
        "import sys; from pathlib import Path; from sglang_engine.hub import find_model\n"
        "sys.exit(find_model(sys.argv[1], None, [Path(sys.argv[2])]) is None)"
    )
    environment = {"PYTHONHASHSEED": seed, "PATH": os.environ["PATH"]}
    found = subprocess.run(
        [sys.executable, "-S", "-c", asked, MODEL, str(tmp_path)], cwd=REPOSITORY, env=environment, check=False
    )
    assert (found.returncode == 0) is whole


def test_model_is_found_in_a_folder_whose_name_differs_in_case(tmp_path: Path) -> None:
    snapshot = put(tmp_path, [*BASE, *SAFETENSORS], "models--zai-org--glm-4.7-flash")
    assert find_model(MODEL, None, [tmp_path]) == snapshot
    assert find_model("zai-org/GLM-4.7", None, [tmp_path]) is None


def test_exact_name_comes_first(tmp_path: Path) -> None:
    put(tmp_path, [*BASE, *SAFETENSORS], "models--ZAI-ORG--GLM-4.7-FLASH")
    exact = put(tmp_path, [*BASE, *SAFETENSORS])
    assert find_model(MODEL, None, [tmp_path]) == exact


async def test_download_is_compared_with_the_hub_s_list(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in [*BASE, *SAFETENSORS, "README.md"]:
        (source / name).write_text("x")
    cache = tmp_path / "cache"
    snapshot = put(cache, [*BASE, *SAFETENSORS])
    async with serving(Hub(MODEL, source).app(), "127.0.0.1", 0) as port:
        environ = {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
        assert await missing_parts(MODEL, "main", cache, environ) == []
        (snapshot / SAFETENSORS[1]).write_text("")
        assert await missing_parts(MODEL, "main", cache, environ) == [f"{SAFETENSORS[1]} has 0 bytes, but 1 on the hub"]
        (snapshot / SAFETENSORS[1]).unlink()
        [missing] = await missing_parts(MODEL, "main", cache, environ)
        assert missing.startswith(f"{MODEL} (main) is not complete in {cache}")
    put(tmp_path / "other", [*BASE, *SAFETENSORS])
    [missing] = await missing_parts(MODEL, "main", tmp_path / "other", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert missing.startswith("the hub's list of its files cannot be fetched: ")
