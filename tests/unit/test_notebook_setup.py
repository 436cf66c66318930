"""`pip install -e ".[dev]"` brings what the notebook imports."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from embedded.environment import MODEL_FOLDER

REPOSITORY = Path(__file__).parents[2]


def test_every_package_of_the_notebook_is_a_dependency() -> None:
    cells = json.loads((REPOSITORY / "test_endpoint.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    imported = {module.partition(".")[0] for source in code for module in imports_of(source)} - sys.stdlib_module_names
    assert "transformers" in imported
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + project["optional-dependencies"]["dev"]
    installed = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in named}
    distributions = packages_distributions()
    missing = [module for module in imported if not {name.lower() for name in distributions[module]} & installed]
    assert missing == []


def test_opening_it_with_the_tiny_glm_names_its_tokenizer() -> None:
    first = json.loads((REPOSITORY / "test_endpoint.ipynb").read_text(encoding="utf-8"))["cells"][0]
    settings = f"RUNPOD_BASE_URL=http://127.0.0.1:8000/v2 TOKENIZER={MODEL_FOLDER.relative_to(REPOSITORY)} "
    assert settings + ".venv/bin/jupyter lab test_endpoint.ipynb" in "".join(first["source"])


def test_every_plot_has_a_sentence_on_how_to_read_it() -> None:
    cells = json.loads((REPOSITORY / "test_endpoint.ipynb").read_text(encoding="utf-8"))["cells"]
    plots = [at for at, cell in enumerate(cells) if "plt.show()" in "".join(cell["source"])]
    assert len(plots) == 2
    for at in plots:
        before = cells[at - 1]
        assert before["cell_type"] == "markdown"
        assert "".join(before["source"]).count(". ") >= 1


def imports_of(source: str) -> list[str]:
    modules: list[str] = []
    for node in ast.walk(ast.parse(source, type_comments=False)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
    return modules
