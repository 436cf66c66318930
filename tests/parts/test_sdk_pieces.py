"""The inner pieces of RunPod's SDK that the worker stands on: a release that changes one fails here, by name."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

import pytest

from scripts.worker_process import REPOSITORY

SDK_ROOM = REPOSITORY / "serverless" / "runpod.py"

# For each piece: None for a value, else the parameters that the worker gives it.
PIECES: dict[tuple[str, str], tuple[str, ...] | None] = {
    ("runpod.http_client", "AsyncClientSession"): ("cookie_jar",),
    ("runpod.serverless.modules.rp_fitness", "run_fitness_checks"): (),
    ("runpod.serverless.modules.rp_fitness", "_report_unhealthy"): ("check", "reason"),
    ("runpod.serverless.modules.rp_http", "JOB_DONE_URL"): None,
    ("runpod.serverless.modules.rp_http", "JOB_STREAM_URL"): None,
    ("runpod.serverless.modules.rp_job", "_job_get_url"): ("batch_size",),
    ("runpod.serverless.modules.rp_job", "_job_stop_url"): (),
    ("runpod.serverless.modules.rp_ping", "Heartbeat"): (),
    ("runpod.serverless.modules.worker_state", "JobsProgress"): (),
    ("runpod.serverless.modules.worker_state", "PingJobMirror"): (),
    ("runpod.serverless.modules.worker_state", "WORKER_ID"): None,
    ("runpod.version", "__version__"): None,
}
# And of the classes, their methods.
METHODS: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("runpod.serverless.modules.rp_ping", "Heartbeat", "ping_loop"): ("self",),
    ("runpod.serverless.modules.worker_state", "JobsProgress", "add"): ("self", "element"),
    ("runpod.serverless.modules.worker_state", "JobsProgress", "remove"): ("self", "element"),
    ("runpod.serverless.modules.worker_state", "JobsProgress", "get_job_list"): ("self",),
    ("runpod.serverless.modules.worker_state", "PingJobMirror", "set"): ("self", "job_ids"),
}


@pytest.mark.parametrize(("module", "name"), PIECES, ids=[name for _, name in PIECES])
def test_piece_is_there(module: str, name: str) -> None:
    piece = getattr(importlib.import_module(module), name)
    if (parameters := PIECES[module, name]) is not None:
        assert_takes(piece, parameters)


@pytest.mark.parametrize(("module", "name", "method"), METHODS, ids=[".".join(path[1:]) for path in METHODS])
def test_method_is_there(module: str, name: str, method: str) -> None:
    owner = getattr(importlib.import_module(module), name)
    assert_takes(getattr(owner, method), METHODS[module, name, method])


def test_heartbeat_has_the_mirror_and_the_session_that_the_worker_sets() -> None:
    heartbeat = importlib.import_module("runpod.serverless.modules.rp_ping").Heartbeat()
    assert heartbeat._mirror is None
    assert isinstance(heartbeat._session.hooks["response"], list)
    heartbeat._session.close()


def assert_takes(function: Any, given: tuple[str, ...]) -> None:
    """It can be called with these parameters by name, and asks for no others."""
    inspect.signature(function).bind(**dict.fromkeys(given))


def test_no_other_file_imports_the_sdk_and_this_one_nothing_else() -> None:
    imported: set[tuple[str, str]] = set()
    rooms = ("common", "gateway", "serverless", "sglang_engine")
    for path in [*REPOSITORY.glob("*.py"), *(path for room in rooms for path in (REPOSITORY / room).glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.partition(".")[0] == "runpod" for alias in node.names), path.name
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "runpod":
                assert path == SDK_ROOM, path.name
                imported |= {(node.module or "", alias.name) for alias in node.names}
    assert imported == set(PIECES)
