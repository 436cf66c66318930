"""The weekly check for newer versions: which one is the newest, and where it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.bump import (
    PAGE_PLACES,
    REPOSITORY,
    RUNPOD_PLACES,
    SGLANG_IMAGE_FILES,
    SGLANG_PLACES,
    newest,
    runpod_range,
    write,
    write_digest,
)


@pytest.mark.parametrize(
    ("names", "highest"),
    [
        (["v0.5.9", "v0.5.23", "v0.5.10"], "0.5.23"),
        (["v0.5.23", "v0.5.23.post1"], "0.5.23.post1"),
        (["v0.5.23-cu129", "v0.5.24rc0", "latest", "v0.5.22"], "0.5.22"),
        (["1.9.1", "1.12.0", "1.13.0.dev1"], "1.12.0"),
    ],
)
def test_newest_is_the_highest_release(names: list[str], highest: str) -> None:
    assert newest(names) == highest


def test_no_release_is_an_error() -> None:
    with pytest.raises(LookupError):
        newest(["latest", "nightly"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in {*SGLANG_PLACES, *RUNPOD_PLACES}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


def test_version_is_written_in_all_its_places(copy: Path) -> None:
    write(copy, SGLANG_PLACES, "0.6.1")
    write(copy, RUNPOD_PLACES, "1.13.2")
    texts = {path.name: path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert "ARG BASE_IMAGE=lmsysorg/sglang:v0.6.1\n" in texts["Dockerfile"]
    assert "BASE_IMAGE:-lmsysorg/sglang:v0.6.1}" in texts["docker-compose.yml"]
    assert '"runpod==1.13.2"' in texts["Dockerfile"]
    assert "\nsglang==0.6.1\n" in texts["requirements.txt"]
    assert "\nrunpod==1.13.2\n" in texts["requirements.txt"]
    assert not any("0.5.23" in line for line in texts["pyproject.toml"].splitlines() if "sglang" in line)


def test_library_of_the_page_gets_its_version_and_no_other(copy: Path) -> None:
    (copy / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts" / "vendor.py", copy / "scripts" / "vendor.py")
    for number, places in enumerate(PAGE_PLACES.values()):
        write(copy, places, f"99.0.{number}")
    text = (copy / "scripts" / "vendor.py").read_text()
    assert [text.count(f'"99.0.{number}"') for number in range(len(PAGE_PLACES))] == [1] * len(PAGE_PLACES)


def test_older_version_changes_nothing(copy: Path) -> None:
    before = {path: path.read_text() for path in copy.rglob("*") if path.is_file()}
    write(copy, SGLANG_PLACES, "0.5.1")
    write(copy, RUNPOD_PLACES, "1.11.0")
    assert {path: path.read_text() for path in before} == before


DIGESTS = [f"sha256:{character * 64}" for character in "0f"]


def test_digest_goes_after_the_tag_and_is_replaced_by_the_next(copy: Path) -> None:
    for digest in DIGESTS:
        write_digest(copy, SGLANG_IMAGE_FILES, "lmsysorg/sglang:v0.5.23", digest)
        assert f"ARG BASE_IMAGE=lmsysorg/sglang:v0.5.23@{digest}\n" in (copy / "Dockerfile").read_text()
        assert f"BASE_IMAGE:-lmsysorg/sglang:v0.5.23@{digest}}}" in (copy / "docker-compose.yml").read_text()


def test_version_after_a_digest_is_still_found(copy: Path) -> None:
    write_digest(copy, SGLANG_IMAGE_FILES, "lmsysorg/sglang:v0.5.23", DIGESTS[0])
    write(copy, SGLANG_PLACES, "0.6.1")
    write_digest(copy, SGLANG_IMAGE_FILES, "lmsysorg/sglang:v0.6.1", DIGESTS[1])
    assert f"ARG BASE_IMAGE=lmsysorg/sglang:v0.6.1@{DIGESTS[1]}\n" in (copy / "Dockerfile").read_text()


def test_file_without_the_image_is_an_error(copy: Path) -> None:
    with pytest.raises(LookupError, match="Dockerfile"):
        write_digest(copy, ["Dockerfile"], "lmsysorg/sglang:v9", DIGESTS[0])


def test_place_that_is_gone_is_an_error(copy: Path) -> None:
    (copy / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(LookupError, match="Dockerfile"):
        write(copy, SGLANG_PLACES, "0.6.1")


def test_range_of_the_sdk_is_one_minor_version() -> None:
    assert runpod_range('    "runpod>=1.12,<1.13",\n', "1.13.2") == '    "runpod>=1.13,<1.14",\n'
    assert runpod_range('    "runpod>=1.12,<1.13",\n', "1.11.0") == '    "runpod>=1.12,<1.13",\n'
