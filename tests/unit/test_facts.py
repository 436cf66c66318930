"""What the documentation says of images and RunPod's pools: what is compared, and what is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import facts
from scripts.bump import REPOSITORY
from tests.rest_v2 import RestApi

PAGE = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("Dockerfile", "pyproject.toml", "README.md", "docs/deploy.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_documentation_of_today_is_right() -> None:
    assert list(facts.wrong_tags(REPOSITORY)) == []
    assert list(facts.wrong_pools(PAGE, RestApi().catalogue)) == []


def test_tag_that_the_dockerfile_does_not_have_is_found(copy: Path) -> None:
    (copy / "docs" / "more.md").write_text("`lmsysorg/sglang:v0.4.1`, and `lmsysorg/sglang:v0.4.1-cu129`.")
    assert sorted(facts.wrong_tags(copy)) == [
        "docs/more.md: lmsysorg/sglang:v0.4.1, but the Dockerfile has v0.5.23",
        "docs/more.md: lmsysorg/sglang:v0.4.1-cu129, but the Dockerfile has v0.5.23",
    ]


def test_older_worker_is_found_and_a_newer_one_is_not(copy: Path) -> None:
    (copy / "docs" / "more.md").write_text("`ghcr.io/me/glm-flash-worker:0.1.9` and `glm-flash-worker:9.0.0`")
    assert list(facts.wrong_tags(copy)) == ["docs/more.md: glm-flash-worker:0.1.9, but this is 0.2.0"]


def test_image_that_the_registry_does_not_have_is_found(copy: Path) -> None:
    assert list(facts.missing_images(copy, {"lmsysorg/sglang:v0.5.23": "sha256:…"}.get)) == []
    assert list(facts.missing_images(copy, lambda _: None)) == [
        "lmsysorg/sglang:v0.5.23: the registry has no such image"
    ]


def test_card_in_another_pool_is_found() -> None:
    catalogue = RestApi().catalogue
    moved = [entry | {"pool": "BLACKWELL_288"} if "B300" in entry["id"] else entry for entry in catalogue]
    assert list(facts.wrong_pools(PAGE, moved)) == [
        "docs/deploy.md: b300 is said to be in BLACKWELL_180; RunPod's catalogue has it in BLACKWELL_288"
    ]
    without = [entry for entry in catalogue if entry["id"] != "NVIDIA L40S"]
    assert list(facts.wrong_pools(PAGE, without)) == [
        "docs/deploy.md: l40s-fp8 is said to be in ADA_48_PRO; RunPod's catalogue has it in no serverless pool"
    ]


def test_table_that_is_gone_is_found() -> None:
    assert "does not have the presets" in next(facts.wrong_pools("# Deploy", RestApi().catalogue))


def test_without_a_key_the_pools_are_not_compared(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    assert facts.main(copy, has_image=lambda _: True) == 0
    assert "not compared" in capsys.readouterr().err
    (copy / "README.md").write_text("glm-flash-worker:0.0.1")
    assert facts.main(copy, has_image=lambda _: True) == 1
