"""Where compiled kernels are kept: on the volume if there is one, by each compiler's own variable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from engine import plan
from sglang_engine.kernel_caches import FOLDERS, cache_folder, variables


@pytest.mark.parametrize(
    ("environ", "mounts", "folder"),
    [
        ({"HF_HOME": "/runpod-volume/huggingface-cache"}, ["/runpod-volume", "/"], "/runpod-volume/kernel-cache"),
        ({"HF_HOME": "/data"}, ["/data", "/"], "/data/kernel-cache"),
        ({"HF_HOME": "/runpod-volume/huggingface-cache"}, ["/"], None),
        ({}, ["/", "/data"], None),
        ({"HF_HOME": "/data", "KERNEL_CACHE_DIR": "/elsewhere"}, ["/data"], "/elsewhere"),
        ({"HF_HOME": "/data", "KERNEL_CACHE_DIR": "off"}, ["/data"], None),
    ],
)
def test_folder_is_on_the_volume_of_the_models(environ: dict[str, str], mounts: list[str], folder: str | None) -> None:
    found = cache_folder(environ, lambda place: str(place) in mounts)
    assert found == (None if folder is None else Path(folder))


def test_every_compiler_gets_its_folder_below_sglang_s_version(tmp_path: Path) -> None:
    environ = {"KERNEL_CACHE_DIR": str(tmp_path), "TRITON_CACHE_DIR": "/my/own"}
    child = plan({}).child_environ(environ)
    assert child["TRITON_CACHE_DIR"] == "/my/own"
    for variable, name in FOLDERS.items():
        if variable != "TRITON_CACHE_DIR":
            assert child[variable] == str(tmp_path / "sglang-0.5.23" / name)
            assert Path(child[variable]).is_dir()
    assert "SGLANG_CACHE_DIR" not in child, "it holds what is one host's as well"


def test_folder_that_cannot_be_written_to_costs_a_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert variables({"KERNEL_CACHE_DIR": str(tmp_path / "file")}) == {}
    assert "kernels are not kept" in caplog.text
