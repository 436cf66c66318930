"""test_endpoint.ipynb, executed against API mode on the tiny GLM. Run by scripts/notebook."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from embedded.environment import MODEL_FOLDER, engine_environment
from scripts.worker_process import free_port, start_worker, until_api_is_ready

NOTEBOOK = Path(__file__).parents[1] / "test_endpoint.ipynb"
START_SECONDS, CELL_SECONDS = 180.0, 300


def main() -> int:
    """Start API mode, execute the notebook, and write the outputs if asked to. Raises what a cell raises."""
    parser = argparse.ArgumentParser(prog="scripts/notebook", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the outputs in the notebook")
    write: bool = parser.parse_args().write
    notebook = asyncio.run(with_worker())
    show(notebook)
    if write:
        nbformat.write(notebook, NOTEBOOK)
    return 0


async def with_worker() -> nbformat.NotebookNode:
    """The notebook, executed against its own worker."""
    port = free_port()
    worker = await start_worker(None, engine_environment({}), arguments=("--rp_serve_api", "--rp_api_port", str(port)))
    try:
        await until_api_is_ready(f"http://127.0.0.1:{port}", worker, START_SECONDS)
        return await execute(f"http://127.0.0.1:{port}/v2")
    finally:
        await worker.stop()


async def execute(base_url: str, *, concurrencies: str = "") -> nbformat.NotebookNode:
    """The notebook with the outputs of a run against this API. Raises CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = {
        "RUNPOD_BASE_URL": base_url,
        "ENDPOINT_ID": "local",
        "RUNPOD_API_KEY": "",
        "TOKENIZER": str(MODEL_FOLDER),
        "CONCURRENCIES": concurrencies,
        "NO_PROXY": "127.0.0.1",
    }
    with environment(settings):
        await NotebookClient(notebook, timeout=CELL_SECONDS, record_timing=False, coalesce_streams=True).async_execute()
    return notebook


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set these variables in this process's environment, which the kernel inherits."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def show(notebook: nbformat.NotebookNode) -> None:
    """Print each heading with the output of its cells."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            print("\n".join(re.findall(r"^#.*", cell.source, re.MULTILINE)))
        for output in cell.get("outputs", []):
            print(output.get("text") or output.get("data", {}).get("text/plain", ""))


if __name__ == "__main__":
    sys.exit(main())
