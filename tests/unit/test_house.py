"""Where things are: what stands at the top, what the two modules there import, and what installing leaves behind."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.worker_process import REPOSITORY

ROOMS = {"common", "gateway", "serverless", "sglang_engine", "local_runpod", "embedded"}
FACES = {"handler", "engine"}
# The packages' own imports are import-linter's business (pyproject.toml).
MAY_IMPORT = {"handler": ROOMS - {"local_runpod", "embedded"} | {"engine"}, "engine": {"common", "sglang_engine"}}


def imported_by(module: str) -> set[str]:
    """The project's modules and packages that a module at the top imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((REPOSITORY / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found & (ROOMS | FACES)


def test_only_the_two_faces_are_modules_at_the_top() -> None:
    assert {path.stem for path in REPOSITORY.glob("*.py")} == FACES


@pytest.mark.parametrize("module", sorted(FACES))
def test_faces_import_only_what_is_below_them(module: str) -> None:
    assert imported_by(module) <= MAY_IMPORT[module]


def test_installing_brings_nothing_into_the_import_namespace(tmp_path: Path) -> None:
    look = f"import importlib.util as u; print([name for name in {sorted(ROOMS | FACES)} if u.find_spec(name)])"
    found = subprocess.run(
        [sys.executable, "-P", "-c", look], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]", "away from its folder, nothing of the program can be imported"


def test_image_copies_the_program_and_nothing_else() -> None:
    copied = {
        word
        for line in (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ")
        for word in line.split()[1:-1]
    }
    assert copied == {"handler.py", "engine.py"} | ROOMS - {"embedded"}
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied | {
        "embedded/requirements.txt"
    }
