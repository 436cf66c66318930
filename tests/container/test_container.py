"""The image and the compose file, run for real: healthy, answering on the published ports, gone without a trace."""

from __future__ import annotations

import json
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

import httpx

from tests.answers import events_of
from tests.container.conftest import Compose, Docker

API, ENGINE, ROUTER = "http://127.0.0.1:8000", "http://127.0.0.1:30000", "http://127.0.0.1:8080"
CHAT_ROUTE = "/v1/chat/completions"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
KILL_ENGINE = """
import os, pathlib
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"-m\\0sglang.launch_server" in path.read_bytes():
        os.kill(int(path.parent.name), 9)
"""
SCRATCH = "/tmp"  # noqa: S108 (a tmpfs of the container's own)


def ask(url: str, body: Any) -> httpx.Response:
    return httpx.post(url, json=body, timeout=60, trust_env=False)


def test_compose_up_answers_heals_and_stops(compose: Compose) -> None:
    compose.answer("up", "--detach", "--no-build", "--pull", "never", "--wait", "--wait-timeout", "120")
    docker, container = compose.docker, compose.container
    assert docker.inspect(container, ".State.Health.Status") == "healthy"

    answer = ask(f"{API}/v2/local/runsync", {"input": CHAT}).json()
    assert answer["status"] == "COMPLETED"
    assert answer["output"][0]["echo"]["messages"] == CHAT["messages"]
    streamed = ask(f"{API}/openai/v1/chat/completions", CHAT | {"stream": True}).text
    assert events_of([streamed])[-1] == "[DONE]"
    assert ask(f"{ENGINE}/v1/chat/completions", CHAT).json()["path"] == "/v1/chat/completions"

    # The engine dies: it is started again, nothing is left of the first, and no zombie.
    docker.answer("exec", container, "python3", "-c", KILL_ENGINE)
    assert ask(f"{API}/runsync", {"input": CHAT}).json()["status"] == "COMPLETED"
    time.sleep(1)
    processes = docker.processes(container)
    engines = [process for process in processes if "launch_server" in process and "guard.py" not in process]
    assert len(engines) == 1
    assert not any(process.split()[1].startswith("Z") for process in processes), processes

    # A job in flight is finished after the stop has begun.
    answers: list[httpx.Response] = []
    slow = {"input": CHAT | {"script": {"pause": 3}}}
    asking = threading.Thread(target=lambda: answers.append(ask(f"{API}/runsync", slow)))
    asking.start()
    time.sleep(1)
    began = time.monotonic()
    compose.answer("stop")
    assert time.monotonic() - began < 30
    asking.join(5)
    assert answers[0].json()["status"] == "COMPLETED"
    assert docker.inspect(container, ".State.ExitCode") == 0
    assert docker.inspect(container, ".State.Pid") == 0


def test_fleet_serves_on_the_gpus_that_are_there_behind_its_router(fleet: Compose) -> None:
    fleet.answer("up", "--detach", "--no-build", "--pull", "never")
    assert steps_until(f"{ROUTER}/v1/models", 200)[-1] == 200
    deadline = time.monotonic() + 60
    while not all(CHAT_ROUTE in fleet.answer("logs", service).stdout for service in ("worker", "fleet-1")):
        assert time.monotonic() < deadline, "one of the two answers nothing"
        asked = {"model": "m", "messages": [{"role": "user", "content": secrets.token_hex(200)}]}
        assert ask(f"{ROUTER}{CHAT_ROUTE}", asked).json()["echo"]["messages"] == asked["messages"]
    streamed = ask(f"{ROUTER}{CHAT_ROUTE}", CHAT | {"model": "m", "stream": True}).text
    assert events_of([streamed])[-1] == "[DONE]"
    for number in range(2, 8):
        assert f"no GPU {number} here" in fleet.answer("logs", f"fleet-{number}").stdout
    began = time.monotonic()
    fleet.answer("stop")
    assert time.monotonic() - began < 30
    containers = fleet.answer("ps", "--all", "--quiet").stdout.split()
    assert len(containers) == 9
    assert {fleet.docker.inspect(container, ".State.ExitCode") for container in containers} == {0}


def test_published_ports_are_on_loopback_alone(compose: Compose) -> None:
    compose.answer("up", "--detach", "--no-build", "--pull", "never")
    ports = compose.docker.inspect(compose.container, ".HostConfig.PortBindings")
    assert {binding["HostIp"] for bindings in ports.values() for binding in bindings} == {"127.0.0.1"}


def test_image_runs_read_only_and_unprivileged(docker: Docker) -> None:
    job = json.dumps({"input": CHAT})
    options = (
        "--rm",
        "--read-only",
        "--tmpfs",
        SCRATCH,
        "--user",
        "1000:1000",
        "--cap-drop",
        "ALL",
        "-e",
        f"HOME={SCRATCH}",
    )
    answer = docker.answer("run", *options, docker.image, "python3", "-u", "handler.py", "--test_input", job)
    assert json.loads(answer.stdout)["status"] == "COMPLETED"


def test_image_tells_its_defaults_from_a_user_s_settings(docker: Docker) -> None:
    told = docker.answer(
        "run",
        "--rm",
        "-e",
        "PRESET=l40s-fp8",
        "-e",
        "MEM_FRACTION_STATIC=0.8",
        docker.image,
        "python3",
        "engine.py",
        "--print",
    ).stdout
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in told.splitlines()[2:]}
    assert rows["SERVED_MODEL_NAME"] == ["glm-4.7-flash", "image"]
    assert rows["MEM_FRACTION_STATIC"] == ["0.8", "environment"]
    assert rows["MODEL_NAME"] == ["mratsim/GLM-4.7-Flash-FP8", "preset l40s-fp8"]


def test_wrong_setting_ends_with_2(docker: Docker) -> None:
    command = ("python3", "-u", "handler.py", "--rp_serve_api")
    answer = docker.answer("run", "--rm", "-e", "MEM_FRACTION_STATIC=much", docker.image, *command, check=False)
    assert answer.returncode == 2
    assert "MEM_FRACTION_STATIC='much': expected a number" in answer.stderr


def test_worker_stops_at_once_when_nothing_is_in_flight(docker: Docker) -> None:
    job_queue = "RUNPOD_WEBHOOK_GET_JOB=http://127.0.0.1:9/v2/e/job-take/$ID?gpu=x"
    options = ("-e", job_queue, "-e", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=true", "-e", "RUNPOD_SKIP_GPU_CHECK=true")
    container = docker.answer("run", "--detach", *options, docker.image).stdout.strip()
    try:
        deadline = time.monotonic() + 60
        while "taking jobs" not in docker.answer("logs", container).stderr:
            assert time.monotonic() < deadline, docker.answer("logs", container).stderr
            time.sleep(0.2)
        began = time.monotonic()
        docker.answer("stop", "--time", "30", container)
        assert time.monotonic() - began < 5
        assert docker.inspect(container, ".State.ExitCode") == 0
    finally:
        docker.answer("rm", "--force", container)


def test_image_holds_no_tests_no_history_and_no_secret(docker: Docker) -> None:
    files = docker.answer("run", "--rm", docker.image, "ls", "-a", "/worker").stdout.split()
    rooms = {"common", "gateway", "local_runpod", "serverless", "sglang_engine"}
    assert {"handler.py", "engine.py", "image.env"} | rooms <= set(files)
    assert not {".git", ".env", "tests", "embedded", ".venv"} & set(files)
    history = docker.answer("history", "--no-trunc", docker.image).stdout
    assert "HF_TOKEN=" not in history.replace("HF_TOKEN=$(cat", "")


def test_plain_http_tells_the_load_balancer_of_each_step(docker: Docker) -> None:
    """204 while the engine starts, 200 once it is warm, 204 while it is started again, 200, gone."""
    script = json.dumps({"ready_after": 3})
    options = ("-e", "MODE=http", "-e", "RUNPOD_ENDPOINT_ID=local", "-e", f"SCRIPTED_ENGINE={script}")
    container = docker.answer("run", "--detach", "-p", "127.0.0.1::80", *options, docker.image).stdout.strip()
    try:
        [published] = docker.inspect(container, ".NetworkSettings.Ports")["80/tcp"]
        url = f"http://127.0.0.1:{published['HostPort']}"
        assert steps_until(f"{url}/ping", 200) == [204, 200]
        assert ask(f"{url}/v1/chat/completions", CHAT).json()["echo"]["messages"] == CHAT["messages"]
        assert ask(f"{url}/flush_cache", {}).status_code == 403
        docker.answer("exec", container, "python3", "-c", KILL_ENGINE)
        assert steps_until(f"{url}/ping", 204)[-1] == 204
        assert steps_until(f"{url}/ping", 200) == [204, 200]
        docker.answer("stop", "--time", "30", container)
        assert docker.inspect(container, ".State.ExitCode") == 0
    finally:
        docker.answer("rm", "--force", container)


def steps_until(url: str, status: int) -> list[int]:
    """The statuses that a health check saw up to this one, each once in a row. Docker's proxy may refuse at first."""
    seen: list[int] = []
    deadline = time.monotonic() + 60
    while not seen or seen[-1] != status:
        assert time.monotonic() < deadline, seen
        with suppress(httpx.TransportError):
            now = httpx.get(url, timeout=5, trust_env=False).status_code
            if not seen or seen[-1] != now:
                seen.append(now)
        time.sleep(0.05)
    return seen
