"""Nobody gets in: no other host, no administration of the engine, no secret, and no more than a request may ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from local_runpod import JobState, RawJson
from scripts.worker_process import SCRIPTED_ENGINE, Platform, Worker, running_platform, running_worker
from tests.answers import error_of
from tests.unit.test_build_request import BAD_ROUTES, FORBIDDEN_ROUTES
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]

# Notes where every socket of every Python process goes to, and every name that is looked up.
AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments
        with open(os.environ["AUDIT_FILE"], "a") as file:
            print(address[0] if isinstance(address, tuple) else address, file=file)

sys.addaudithook(note)
"""

MORE_BAD_ROUTES = [
    "https://127.0.0.2/v1/models",
    "http:/127.0.0.2/v1/models",
    "///127.0.0.2/v1/models",
    "\\\\127.0.0.2\\v1",
    "/\\127.0.0.2/v1/models",
    "user:password@127.0.0.2/v1/models",
    "127.0.0.2:80/v1/models",
    "/v1/models;x=1",
    "/v1/models%3fx",
    "/v1/%2E%2E/flush_cache",
    "/v1/..%2fflush_cache",
    "/v1/models\r\nHost: 127.0.0.2",
    "/v1/models\tx",
    "file:///etc/passwd",
    " /v1/models",
    "/v1/\u2024\u2024/flush_cache",
    "/v1/\uff0e\uff0e/flush_cache",
]


async def test_no_socket_to_another_host_is_ever_opened(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    audit_file = tmp_path / "audit"
    environment = {"PYTHONPATH": f"{tmp_path}:{SCRIPTED_ENGINE}", "AUDIT_FILE": str(audit_file)}
    async with running_platform() as platform, running_worker(platform, environment) as worker:
        before = len(await worker.engine_requests())
        for route in [*BAD_ROUTES, *MORE_BAD_ROUTES, *FORBIDDEN_ROUTES]:
            for body in (None, {"a": 1}):
                error = error_of(await platform.answer({"openai_route": route, "openai_input": body}))
                assert error["code"] == (403 if route in FORBIDDEN_ROUTES else 400), route
        assert len(await worker.engine_requests()) == before
        await platform.answer({"messages": HELLO})
    assert set(audit_file.read_text().split()) == {"127.0.0.1"}


async def test_redirect_of_the_engine_is_not_followed(platform: Platform, worker: Worker) -> None:
    script = {"status": 307, "body": "", "content_type": "text/plain\r\nlocation: http://127.0.0.2/"}
    error = error_of(await platform.answer({"messages": HELLO, "script": script}))
    assert error["message"] == "the engine answered with status 307 and no message"


async def test_allowed_routes_are_open_exactly() -> None:
    environment = {"ALLOWED_ROUTES": "/server_info, /flush_cache"}
    async with running_platform() as platform, running_worker(platform, environment):
        assert (await platform.answer({"openai_route": "/server_info"})).output == [
            {"path": "/server_info", "echo": None}
        ]
        for route in ("/server_info/x", "/get_server_info"):
            assert error_of(await platform.answer({"openai_route": route}))["code"] == 403


SECRETS = {
    "API_KEY": "sk-engine-key",
    "ADMIN_API_KEY": "sk-admin-key",
    "HF_TOKEN": "hf_download_token",
    "AWS_SECRET_ACCESS_KEY": "aws+secret/key",
}


@pytest.fixture(scope="module")
async def secretive() -> AsyncIterator[tuple[Platform, Worker]]:
    """A worker with secrets, whose engine prints them all as SGLang does, and its platform."""
    says = f"server_args={ {name.lower(): value for name, value in SECRETS.items()} }\n"
    async with running_platform() as platform, running_worker(platform, SECRETS, engine={"says": says}) as worker:
        yield platform, worker


async def test_secrets_reach_the_engine(secretive: tuple[Platform, Worker]) -> None:
    seen = await secretive[1].ask_engine()
    assert seen["requests"][-1]["headers"]["authorization"] == f"Bearer {SECRETS['API_KEY']}"
    argv = seen["argv"]
    assert argv[argv.index("--api-key") + 1] == SECRETS["API_KEY"]
    assert argv[argv.index("--admin-api-key") + 1] == SECRETS["ADMIN_API_KEY"]
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert seen["hf_token"] == SECRETS["HF_TOKEN"]
    assert SECRETS["HF_TOKEN"] not in argv


@pytest.mark.parametrize("stream", [False, True], ids=["unstreamed", "streamed"])
async def test_secrets_are_masked_in_errors_and_in_the_log(secretive: tuple[Platform, Worker], stream: bool) -> None:
    platform, worker = secretive
    message = "cannot load with " + " ".join(SECRETS.values())
    script = {"status": 500, "body": json.dumps({"detail": message})}
    if stream:
        script = {"message": message, "then": "error"}
    job = await platform.answer({"messages": HELLO, "stream": stream, "script": script})
    assert error_of(job)["message"] == "cannot load with *** *** *** ***"
    for secret in SECRETS.values():
        assert secret not in str(job.stream)
        assert secret not in worker.log
    await until(lambda: "'hf_token': '***'" in worker.log)  # the engine's own words are in the log, masked


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


TOO_MUCH: dict[str, tuple[Any, int, str]] = {
    "body": ({"text": "x" * 10_001}, 413, "bytes; up to 10000 are accepted (MAX_REQUEST_BYTES)"),
    "depth": (RawJson(f'{{"text": "a", "x": {nested(20)}}}'), 400, "up to 20 levels are accepted (MAX_JSON_DEPTH)"),
    "bomb": (RawJson(f'{{"text": "a", "x": {nested(500_000)}}}'), 400, "up to 20 levels are accepted"),
    "bomb of arrays": (RawJson(f'{{"text": {"[" * 10**6}{"]" * 10**6}}}'), 400, "'text' must be a string"),
    "bomb in the input's place": (RawJson(nested(100_000)), 400, "no request in 'input'"),
    "number without end": (
        RawJson(f'{{"text": "a", "x": {"9" * 10_000}}}'),
        400,
        "NaN and Infinity are not valid JSON",
    ),
    "n": ({"messages": HELLO, "n": 5}, 400, "'n' may be up to 4 (MAX_N)"),
    "n of a prompt": ({"text": "a", "sampling_params": {"n": 5}}, 400, "'n' may be up to 4 (MAX_N)"),
}


@pytest.fixture(scope="module")
async def strict() -> AsyncIterator[tuple[Platform, Worker]]:
    """A worker with low limits, and its platform."""
    limits = {"MAX_REQUEST_BYTES": "10000", "MAX_JSON_DEPTH": "20", "MAX_N": "4"}
    async with running_platform() as platform, running_worker(platform, limits) as worker:
        yield platform, worker


@pytest.mark.parametrize("case", TOO_MUCH)
async def test_too_much_is_refused_and_the_jobs_beside_it_answered(strict: tuple[Platform, Worker], case: str) -> None:
    platform, worker = strict
    job_input, code, message = TOO_MUCH[case]
    # Handed over in one batch: one that cannot be parsed must not take the others with it.
    beside, job, after = (
        platform.queue.submit(each) for each in ({"messages": HELLO}, job_input, {"messages": HELLO, "n": 4})
    )
    error = error_of(await job.finished(30))
    assert error["code"] == code
    assert message in error["message"]
    for other in (beside, after):
        assert (await other.finished(30)).state is JobState.COMPLETED
    assert worker.process.returncode is None
