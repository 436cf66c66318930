"""scripts/deploy against an emulated REST API v2: what it sends, asks, follows and prints."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest

from common.web_server import serving
from scripts import deploy, facts, first_answer, rest_v2
from scripts.deployment import Wanted, deployment
from scripts.worker_process import REPOSITORY
from tests.rest_v2 import ANSWER, ID, KEY, RestApi, create_app
from tests.waiting import until

pytestmark = pytest.mark.anyio

IMAGE = "ghcr.io/me/glm-flash-worker:0.2.0"
NEW = ("--image", IMAGE, "--gpu", "h100")
COMPLETED = {"status": "COMPLETED", "output": [ANSWER]}
SECRET = "hf_0123456789"  # noqa: S105

Run = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
async def api(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RestApi]:
    api = RestApi(job_states=[{"status": "IN_QUEUE"}, {"status": "IN_PROGRESS"}, COMPLETED])
    async with serving(create_app(api), "127.0.0.1", 0) as port:
        api.base_url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("RUNPOD_REST_URL", f"{api.base_url}/rest")
        monkeypatch.setenv("RUNPOD_API_KEY", KEY)
        monkeypatch.setattr(first_answer, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(first_answer, "LOG_SECONDS", 0.5)
        monkeypatch.setattr(rest_v2, "FIRST_PAUSE_SECONDS", 0.01)
        yield api


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    async def run(*words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = await asyncio.to_thread(deploy.main, words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def changing(api: RestApi) -> list[str]:
    return [f"{method} {path}" for method, path, _ in api.requests]


async def test_queue_endpoint_is_created_and_followed_to_its_first_answer(api: RestApi, run: Run) -> None:
    code, out, err = await run(*NEW, "--env", f"HF_TOKEN={SECRET}", "--yes")
    assert code == 0, err
    assert api.requests[0][2]["env"]["HF_TOKEN"] == SECRET
    assert api.requests[0][2]["gpu"] == {"pools": ["ADA_80_PRO"], "count": 1, "minCudaVersion": "13.0"}
    assert changing(api) == ["POST /rest/serverless", f"POST /v2/{ID}/run"]
    assert "3 GPUs x 4.18 USD = 12.54 USD" in err
    assert err.index("1 initializing; NVIDIA H100 80GB HBM3 in US-KS-2") < err.index("1 running")
    assert err.endswith("first answer: Hello there.\n")
    assert f"curl {api.base_url}/v2/{ID}/runsync" in out
    assert f'base_url="{api.base_url}/v2/{ID}/openai/v1"' in out
    assert 'model="glm-4.7-flash"' in out
    assert SECRET not in out + err
    assert KEY not in out + err


async def test_load_balancer_is_asked_until_a_worker_answers(api: RestApi, run: Run) -> None:
    api.http_answers = [502, 204, 503, 400, 200]
    code, out, err = await run(*NEW, "--type", "http", "--yes")
    assert code == 0, err
    assert err.endswith("first answer: Hello there.\n")
    assert api.requests[0][2]["type"] == "LOAD_BALANCER"
    assert changing(api)[1:] == ["POST /lb/v1/chat/completions"] * 5
    assert f'base_url="{api.base_url}/lb/v1"' in out


async def test_printed_client_runs(api: RestApi, run: Run) -> None:
    _, out, _ = await run(*NEW, "--type", "http", "--yes")
    program = out[out.index("import os") :]
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await client.communicate()
    assert said == b"Hello there.\n"


async def test_client_in_the_documentation_tries_again_until_a_worker_answers(
    api: RestApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8")
    [program] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def ask(" in block]
    names: dict[str, Any] = {}
    exec(program.replace("https://<ENDPOINT_ID>.api.runpod.ai", f"{api.base_url}/lb"), names)  # noqa: S102
    monkeypatch.setattr(time, "sleep", lambda _: None)
    api.http_answers = [502, 204, 503, 400, 200]
    assert await asyncio.to_thread(names["ask"], []) == "Hello there."
    assert len(api.requests) == 5
    api.http_answers = [401]
    with pytest.raises(httpx.HTTPStatusError):
        await asyncio.to_thread(names["ask"], [])


@pytest.mark.parametrize("words", [NEW, (*NEW, "--type", "http")])
async def test_dry_run_prints_the_body_alone_and_sends_nothing(
    api: RestApi, run: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    api.faults = [(500, {})]
    code, out, err = await run(*words, "--env", f"HF_TOKEN={SECRET}", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["env"].items() >= {("HF_TOKEN", "***")}
    assert SECRET not in err
    assert len(api.faults) == 1, "no request took it"


@pytest.mark.parametrize(("reply", "code", "sent"), [("y\n", 0, 2), ("n\n", 1, 0), ("", 1, 0)])
async def test_nothing_is_created_without_a_yes(
    api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch, reply: str, code: int, sent: int
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(reply))
    assert (await run(*NEW))[0] == code
    assert len(api.requests) == sent


async def test_without_a_terminal_to_ask_on_nothing_is_created(
    api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = await run(*NEW)
    assert code == 2
    assert "--yes" in err
    assert not api.requests


async def test_value_of_a_variable_can_come_from_the_shell(
    api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    await run(*NEW, "--env", "HF_TOKEN", "--yes")
    assert api.requests[0][2]["env"].items() >= {("HF_TOKEN", SECRET)}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--image and --gpu missing"),
        ((*NEW[:3], "h1000"), "expected one of h100"),
        ((*NEW, "--env", "TP_SIZE=two", "--env", "MAX_N=x"), "MAX_N='x'"),
        ((*NEW, "--env", "NOT_SET_ANYWHERE"), "not set here"),
        ((*NEW, "--env", "=x"), "expected NAME=VALUE"),
        ((*NEW, "--env", f"HF TOKEN={SECRET}"), "--env 'HF TOKEN': expected NAME=VALUE"),
        (("--delete", ID, "--dry-run"), "--delete takes no --dry-run"),
        (("--status", ID, "--gpu", "h100", "--type", "http"), "--status takes no --gpu, --type"),
    ],
)
async def test_wrong_command_line_ends_with_2_and_sends_nothing(
    api: RestApi, run: Run, words: tuple[str, ...], named: str
) -> None:
    code, out, err = await run(*words, "--yes")
    assert (code, out) == (2, "")
    assert named in err
    assert SECRET not in err
    assert not api.requests


async def test_missing_key_is_named(api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "")
    code, _, err = await run("--status", ID)
    assert code == 2
    assert "RUNPOD_API_KEY is not set" in err


# --- What RunPod has against it --------------------------------------------------------------------------------------


async def test_refusal_of_the_api_is_one_line_with_its_reasons(
    api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "with_catalogue", lambda gpu, *_: {**gpu, "pools": ["NOWHERE"], "excludedTypes": []})
    code, out, err = await run(*NEW, "--yes")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "RunPod refused it (422 Unprocessable Entity): Request validation failed.; $.gpu.pools: unknown pool 'NOWHERE'"
    )


async def test_refusal_that_quotes_the_request_is_told_without_its_secrets(
    api: RestApi, run: Run, body: dict[str, Any]
) -> None:
    api.quotes = True
    words = ("--env", f"HF_TOKEN={SECRET}", "--env", "SGLANG_EXTRA_ARGS=--admin-api-key s3cret-of-mine", "--yes")
    code, _, err = await run(*NEW, *words)
    assert code == 1
    assert '"HF_TOKEN": "***"' in err.splitlines()[-1]
    assert "s3cret-of-mine" not in err
    assert SECRET not in err
    api.add(body)
    code, _, err = await run("--update", ID, "--env", "MAX_N=4", "--yes")
    assert code == 1
    assert "RunPod refused it (422 Unprocessable Entity)" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"/serverless/{ID}", ("--status", ID)),
        (f"/serverless/{ID}", ("--update", ID, "--gpu", "h200", "--yes")),
        (f"/serverless/{ID}/workers", ("--status", ID)),
        (f"/serverless/{ID}/workers", ("--delete", ID, "--yes")),
        (f"/serverless/{ID}/workers", ("--logs", ID)),
        ("/catalog/gpus", (*NEW, "--yes")),
        ("/serverless", (*NEW, "--yes")),
    ],
)
@pytest.mark.parametrize("answer", [{}, [], "text", None])
async def test_answer_of_another_shape_is_told_in_one_line(
    api: RestApi, run: Run, body: dict[str, Any], path: str, words: tuple[str, ...], answer: Any
) -> None:
    api.add(body)
    api.odd_answers = {path: answer}
    code, _, err = await run(*words)
    assert code == 1
    assert err.splitlines()[-1].startswith("RunPod's answer to ")
    assert f" {path} " in err.splitlines()[-1]


async def test_new_endpoint_without_addresses_is_named_and_left(api: RestApi, run: Run) -> None:
    api.odd_answers = {"/serverless": {"id": ID}}
    code, out, err = await run(*NEW, "--yes")
    assert (code, out) == (1, "")
    assert f"--delete {ID} deletes it" in err
    assert err.endswith("RunPod's answer does not say where the endpoint can be asked (requestUrls)\n")


async def test_key_without_the_permission_is_told_which_one_it_needs(api: RestApi, run: Run) -> None:
    api.faults = [(403, {})]
    code, _, err = await run("--status", ID)
    assert code == 1
    assert err.startswith("RunPod refused it (403 Forbidden): it did not say why; RUNPOD_API_KEY needs a key with the")


async def test_wrong_key_is_told_in_one_line(api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong_wrong")
    code, _, err = await run("--status", ID)
    assert code == 1
    assert err.startswith("RunPod refused it (401 Unauthorized): missing bearer token; RUNPOD_API_KEY")
    assert err.count("\n") == 1
    assert "rpa_wrong_wrong" not in err


async def test_unknown_endpoint_is_told_in_one_line(api: RestApi, run: Run) -> None:
    code, _, err = await run("--logs", "nope")
    assert (code, err) == (1, "RunPod refused it (404 Not Found): resource not found\n")


async def test_busy_api_is_asked_again(api: RestApi, run: Run) -> None:
    api.faults = [(429, {"Retry-After": "0"}), (503, {}), (502, {})]
    code, _, err = await run(*NEW, "--yes")
    assert code == 0, err
    assert not api.faults


async def test_api_that_stays_away_is_told_in_one_line(api: RestApi, run: Run) -> None:
    api.faults = [(503, {})] * rest_v2.TRIES
    code, _, err = await run("--status", ID)
    assert (code, err) == (1, "RunPod refused it (503 Service Unavailable): it did not say why\n")


async def test_creation_without_an_answer_is_not_repeated_and_says_what_is_there(api: RestApi, run: Run) -> None:
    api.loses_answers = True
    code, _, err = await run(*NEW, "--yes")
    assert code == 1
    assert changing(api) == ["POST /rest/serverless"]
    assert err.splitlines()[-1].endswith(f"endpoints named glm-4.7-flash now: {ID}")


# --- Following -------------------------------------------------------------------------------------------------------


async def test_failed_first_job_is_reported_with_its_error_and_what_to_do(api: RestApi, run: Run) -> None:
    api.job_states = [{"status": "FAILED", "error": "out of memory\nlower it"}]
    code, out, err = await run(*NEW, "--yes")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "the first job ended as FAILED: out of memory lower it"
    assert f"--delete {ID} deletes it" in err


async def test_unhealthy_worker_shows_its_last_lines_once(api: RestApi, run: Run) -> None:
    api.worker_states = ["INITIALIZING", "UNHEALTHY", "UNHEALTHY", "RUNNING"]
    api.job_states = [{"status": "IN_QUEUE"}] * 4 + [COMPLETED]
    api.log = ["Load weight begin", f"the token {SECRET} is not valid"]
    code, _, err = await run(*NEW, "--yes", "--env", f"HF_TOKEN={SECRET}")
    assert code == 0, err
    assert err.count("the last lines of worker w1:") == 1
    assert "12:05:01 the token *** is not valid" in err


async def test_api_that_is_away_for_a_while_does_not_end_the_following(api: RestApi, run: Run) -> None:
    api.job_states = [{"status": "IN_QUEUE"}]
    running = asyncio.create_task(run(*NEW, "--yes"))
    await until(lambda: f"POST /v2/{ID}/run" in changing(api))
    api.faults = [(503, {}) for _ in range(2 * rest_v2.TRIES)]
    await until(lambda: not api.faults)
    api.job_states = [COMPLETED]
    code, _, err = await running
    assert code == 0, err
    assert "workers: not known now (RunPod refused it (503 Service Unavailable): it did not say why)" in err
    assert api.cancelled == []


async def test_endpoint_that_is_gone_ends_the_following_and_its_job(api: RestApi, run: Run) -> None:
    api.job_states = [{"status": "IN_QUEUE"}]
    running = asyncio.create_task(run(*NEW, "--yes"))
    await until(lambda: f"POST /v2/{ID}/run" in changing(api))
    api.faults = [(404, {})]
    code, _, err = await running
    assert code == 1
    assert err.splitlines()[-1].startswith("RunPod refused it (404 Not Found)")
    assert api.cancelled == ["job-1"]


async def test_endpoint_that_never_answers_ends_the_wait_and_its_job(
    api: RestApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.job_states = [{"status": "IN_QUEUE"}]
    api.workers_are_there = False
    monkeypatch.setattr(first_answer, "HOST_SECONDS", -1499.5)
    code, _, err = await run(*NEW, "--yes")
    assert code == 1
    assert "no worker yet" in err
    assert api.cancelled == ["job-1"]


async def test_ctrl_c_cancels_the_job_and_says_that_the_endpoint_is_there(api: RestApi) -> None:
    api.job_states = [{"status": "IN_QUEUE"}]
    command = [sys.executable, "-m", "scripts.deploy", *NEW, "--yes"]
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stderr=asyncio.subprocess.PIPE)
    await until(lambda: f"POST /v2/{ID}/run" in changing(api))
    process.send_signal(signal.SIGINT)
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert api.cancelled == ["job-1"]
    assert f"endpoint {ID} is still there" in said.decode()
    assert "Traceback" not in said.decode()


# --- Endpoints that exist --------------------------------------------------------------------------------------------


@pytest.fixture
def body() -> dict[str, Any]:
    return deployment(Wanted(image=IMAGE, gpu="h100", environment={"HF_TOKEN": SECRET, "CONTEXT_LENGTH": "8192"})).body


async def test_update_sends_what_changes_and_keeps_the_variables(api: RestApi, run: Run, body: dict[str, Any]) -> None:
    api.add(body)
    code, _, err = await run("--update", ID, "--image", f"{IMAGE}.1", "--env", "MAX_N=4", "--max-workers", "5", "--yes")
    assert code == 0, err
    ((method, _, sent),) = api.requests
    assert method == "PATCH"
    assert sent == {"image": f"{IMAGE}.1", "env": {**body["env"], "MAX_N": "4"}, "workers": {"min": 0, "max": 5}}
    assert "1 of 2 workers have the newest release; the others get it when they are replaced" in err
    assert SECRET not in err


async def test_dry_run_of_an_update_changes_nothing(api: RestApi, run: Run, body: dict[str, Any]) -> None:
    api.add(body)
    code, out, _ = await run("--update", ID, "--gpu", "rtx4090-awq", "--dry-run")
    assert code == 0
    assert json.loads(out)["gpu"]["pools"] == ["ADA_24"]
    assert SECRET not in out
    assert not api.requests


async def test_dry_run_of_an_update_to_what_is_there_prints_an_empty_body(
    api: RestApi, run: Run, body: dict[str, Any]
) -> None:
    api.add(body)
    code, out, _ = await run("--update", ID, "--gpu", "h100", "--dry-run")
    assert (code, json.loads(out)) == (0, {})


async def test_delete_names_the_endpoint_and_asks(
    api: RestApi, run: Run, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add(body)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    code, _, err = await run("--delete", ID)
    assert code == 1
    assert f"glm-4.7-flash ({ID}), 1 workers" in err
    assert ID in api.endpoints
    assert (await run("--delete", ID, "--yes"))[0] == 0
    assert not api.endpoints


async def test_status_shows_settings_and_workers_without_secrets(api: RestApi, run: Run, body: dict[str, Any]) -> None:
    api.add(body)
    code, out, _ = await run("--status", ID)
    assert code == 0
    assert '"HF_TOKEN": "***"' in out
    assert "w1  INITIALIZING  NVIDIA H100 80GB HBM3, US-KS-2" in out
    assert SECRET not in out


async def test_logs_are_followed_across_a_broken_stream_until_interrupted(
    api: RestApi, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.add(body)
    api.log = ["ready\u2028now", f"the token {SECRET}, and then it breaks off"]
    said: list[str] = []
    monkeypatch.setattr(first_answer, "POLL_SECONDS", 0.01)
    async with rest_v2.RestV2.connect(KEY, f"{api.base_url}/rest") as client:
        following = asyncio.create_task(first_answer.follow_logs(client, ID, said.append))
        await until(lambda: len(api.log_asked) >= 2)
        following.cancel()
        await asyncio.wait({following})
    assert [line for line in said if "12:05" in line] == [
        "w1 | 12:05:00 ready\u2028now",
        f"w1 | 12:05:01 the token {SECRET}, and then it breaks off",
    ]
    assert api.log_asked[:2] == [("100", None), ("100", "1")], "the second goes on after the first's last line"


async def test_logs_are_followed_while_the_api_is_away_and_end_with_the_endpoint(
    api: RestApi, body: dict[str, Any]
) -> None:
    api.add(body)
    said: list[str] = []
    async with rest_v2.RestV2.connect(KEY, f"{api.base_url}/rest") as client:
        following = asyncio.create_task(first_answer.follow_logs(client, ID, said.append))
        await until(lambda: len(api.log_asked) == 1)
        api.faults = [(503, {}) for _ in range(rest_v2.TRIES)]
        await until(lambda: any("the workers are not known now" in line for line in said))
        assert "w1 | is gone" not in said
        api.faults = [(404, {})]
        with pytest.raises(rest_v2.ApiError, match="404 Not Found"):
            await following


async def test_printed_logs_have_no_secret(api: RestApi, body: dict[str, Any]) -> None:
    api.add(body)
    api.log = [f"the token {SECRET}"]
    command = [sys.executable, "-m", "scripts.deploy", "--logs", ID]
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    lines = [await asyncio.wait_for(process.stdout.readline(), 30) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 130
    assert lines[-1] == b"w1 | 12:05:00 the token ***\n"


# What `scripts/deploy` installs, and what those packages need.
ITS_PACKAGES = {"httpx", "httpcore", "anyio", "h11", "idna", "certifi", "typing_extensions", "dotenv", "orjson"}
WITHOUT_OTHERS = f"""
import sys
from importlib.machinery import PathFinder

class OthersAreMissing:
    def find_spec(self, name, path=None, target=None):
        spec = None if path else PathFinder.find_spec(name)
        if spec and "site-packages" in str(spec.origin) and name not in {ITS_PACKAGES}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OthersAreMissing())
from scripts.deploy import main
sys.exit(main())
"""


async def test_needs_no_package_beyond_those_that_it_installs() -> None:
    command = [sys.executable, "-c", WITHOUT_OTHERS, *NEW, "--type", "http", "--dry-run"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["type"] == "LOAD_BALANCER"


async def test_facts_are_compared_with_the_catalogue(
    api: RestApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNPOD_CATALOGUE_URL", f"{api.base_url}/rest/catalog/gpus")
    assert await asyncio.to_thread(facts.main, REPOSITORY, has_image=lambda _: True) == 0
    api.catalogue = [entry for entry in api.catalogue if entry["id"] != "NVIDIA H200"]
    assert await asyncio.to_thread(facts.main, REPOSITORY, has_image=lambda _: True) == 1
    assert "h200 is said to be in HOPPER_141" in capsys.readouterr().err
    api.faults = [(500, {})]
    assert await asyncio.to_thread(facts.main, REPOSITORY, has_image=lambda _: True) == 1
    assert "catalogue cannot be read: HTTPError" in capsys.readouterr().err
