"""The examples, as workers against the local RunPod; their images are examples/build_and_test.sh's business."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.worker_process import REPOSITORY, clean_environment

EXAMPLES = REPOSITORY / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/handler.py"))


def test_each_example_has_its_files() -> None:
    assert NAMES == ["embed", "hello", "stream"]
    for name in NAMES:
        for file in ("Dockerfile", "Dockerfile.dockerignore", "README.md", "jobs.json"):
            assert (EXAMPLES / name / file).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_example_answers_as_it_says(name: str) -> None:
    if name == "embed":
        pytest.importorskip("wordllama", reason="its model's package is not installed")
    run = subprocess.run(
        [sys.executable, "-m", "examples.check", name],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"{name}: every answer is as expected"


def test_wrong_answer_is_told() -> None:
    """The check can fail."""
    command = [sys.executable, str(EXAMPLES / "stream" / "handler.py")]
    run = subprocess.run(
        [sys.executable, "-m", "examples.check", "hello", *command],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "hello: {'name': 'Ada'}: expected {'greeting': 'Hello, Ada!'}, got None (FAILED)" in run.stderr


def test_images_get_the_versions_of_the_lock() -> None:
    locked = set((REPOSITORY / "embedded" / "requirements.txt").read_text(encoding="utf-8").splitlines())
    lines = (EXAMPLES / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} <= locked


@pytest.mark.parametrize("name", NAMES)
def test_image_gets_what_its_dockerfile_copies(name: str) -> None:
    dockerfile = (EXAMPLES / name / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {line.split()[1] for line in dockerfile if line.startswith("COPY ")}
    ignored = (EXAMPLES / name / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((REPOSITORY / path).exists() for path in copied)
