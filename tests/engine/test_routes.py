"""Every route that SGLang serves is known: passed on, refused as administration, or left out on purpose."""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from gateway.errors import NoSuchRouteError, RouteNotAllowedError
from gateway.http_server.refusals import FRAMEWORKS_OWN
from gateway.routes import requested_path
from tests.engine.conftest import Api

# Inference in the form of other servers (Ollama's, SageMaker's, Vertex AI's), a greeting: over plain HTTP they do
# not exist.
LEFT_OUT = {"/", "/api/chat", "/api/generate", "/api/tags", "/api/show", "/invocations", "/vertex_generate"}


def served() -> list[str]:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "srt", "entrypoints", "http_server.py").read_text()
    found = re.findall(
        r"@app\.(?:get|post|put|delete|api_route)\(\s*(?:os\.environ\.get\([^,]*,\s*)?\"(/[^\"]*)\"", source
    )
    assert len(found) > 70
    return sorted({re.sub(r"\{\w+(:path)?\}", "x", path) for path in found})


@pytest.mark.parametrize("path", served())
def test_route_is_known(path: str) -> None:
    if path.startswith("/v1/"):
        assert requested_path(path) == path
    elif path in LEFT_OUT:
        with pytest.raises(NoSuchRouteError):
            requested_path(path)
    else:
        with suppress(RouteNotAllowedError):  # a new one that administers the engine belongs among these
            assert requested_path(path) == path


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/chat/completions", "/separate_reasoning"])
async def test_its_framework_refuses_as_this_server_expects_it_to(api: Api, path: str) -> None:
    method = "POST" if path == "/separate_reasoning" else "GET"
    async with httpx.AsyncClient(base_url=api.worker.engine_url, timeout=60, trust_env=False) as client:
        answer = await client.request(
            method, path, json={"text": "", "reasoning_parser": ""} if method == "POST" else None
        )
    assert answer.content == FRAMEWORKS_OWN[answer.status_code]
    assert (answer.headers.get("allow") == "POST") == (answer.status_code == 405)
