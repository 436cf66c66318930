"""The notebook runs top to bottom, and the committed outputs are a complete run without secrets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from scripts.notebook import NOTEBOOK, execute
from scripts.worker_process import REPOSITORY
from tests.engine.conftest import Api

pytestmark = pytest.mark.anyio


async def test_notebook_runs_top_to_bottom(api: Api) -> None:
    notebook = await execute(f"{api.url}/v2", concurrencies="1,4")
    text = json.dumps(notebook.cells, ensure_ascii=False)
    for said in (
        "COMPLETED: The capital of France is Paris.",  # a job with a stream
        "It is 21 °C in Seoul",  # the tool loop by messages
        "| Paris | 14 | rain |",  # the tool loop on raw tokens
        "kept:     It was 47.",  # preserved thinking
        "cleared:  I no longer know.",
        "('note_city', {'city': 'Paris', 'continent': 'Europe'})",  # structured output with a tool
        "FAILED {'message': 'temperature must be",
    ):
        assert said in text
    assert text.count('"image/png"') == 2


def test_committed_notebook_is_a_whole_run_without_errors_or_secrets() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    text = json.dumps(outputs)
    assert str(REPOSITORY) not in text
    assert not re.search(r"Bearer \w|rpa_\w|hf_\w{8}|/root/|/home/", text)


def test_notebook_without_settings_says_what_to_set(tmp_path: Path) -> None:
    settings = next(cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    answer = subprocess.run(
        [sys.executable, "-c", settings.source], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 1
    assert answer.stderr.strip().startswith("Set RUNPOD_API_KEY and ENDPOINT_ID in .env")
