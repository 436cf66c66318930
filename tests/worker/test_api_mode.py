"""API mode with the clients that people use, unmodified: `openai`, `runpod.Endpoint`, plain HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from scripts.worker_process import Worker, free_port, start_worker, until_api_is_ready
from tests.answers import events_of

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
KEY = "local-secret"
CHAT = {"id": "1", "object": "chat.completion", "created": 1, "model": "glm-4.7-flash"}
TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Seoul"}'}}


@dataclass
class Api:
    worker: Worker
    url: str
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[Api]:
    port = free_port()
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(None, {"LOCAL_API_KEY": KEY}, arguments=flags)
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        httpx.AsyncClient(base_url=f"{url}/v2/any", headers=headers, timeout=20, trust_env=False) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v2/any/openai/v1", api_key=KEY, max_retries=0) as client,
    ):
        await until_api_is_ready(url, worker, key=KEY)
        yield Api(worker, url, http, client)
    assert await worker.stop() == 0, worker.log


def script(answer: dict[str, Any]) -> dict[str, Any]:
    return {"script": {"answer": answer}}


async def test_openai_chat(api: Api) -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "thinking"}
    answer = CHAT | {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    completion = await api.openai.chat.completions.create(
        model="glm-4.7-flash", messages=HELLO, extra_body=script(answer)
    )
    assert completion.choices[0].message.content == "Hi"
    assert completion.choices[0].message.model_extra == {"reasoning_content": "thinking"}


async def test_openai_stream_arrives_as_it_is_made(api: Api) -> None:
    pauses = {"script": {"events": 5, "pause": 0.3}}
    loop = asyncio.get_running_loop()
    stream = await api.openai.chat.completions.create(
        model="glm-4.7-flash", messages=HELLO, stream=True, extra_body=pauses
    )
    times = [(loop.time(), chunk.choices[0].delta.content) async for chunk in stream]
    assert [text for _, text in times] == ["word "] * 5
    assert times[-1][0] - times[0][0] > 0.6, "not all at the end"


async def test_openai_tools(api: Api) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
    answer = CHAT | {"choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}]}
    completion = await api.openai.chat.completions.create(
        model="glm-4.7-flash",
        messages=HELLO,
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
        extra_body=script(answer),
    )
    [call] = completion.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Seoul"}


async def test_openai_models_by_get(api: Api) -> None:
    await api.openai.models.list()
    asked = await api.worker.engine_requests()
    assert (asked[-1]["method"], asked[-1]["path"]) == ("GET", "/v1/models")


@pytest.mark.parametrize(
    ("status", "exception"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
async def test_openai_errors_are_the_right_exceptions(
    api: Api, status: int, exception: type[openai.APIStatusError]
) -> None:
    refusal = {"script": {"status": status, "body": '{"message": "because", "type": "kind", "param": "temperature"}'}}
    for stream in (False, True):
        with pytest.raises(exception) as raised:
            await api.openai.chat.completions.create(
                model="glm-4.7-flash", messages=HELLO, stream=stream, extra_body=refusal
            )
        error: Any = raised.value
        assert error.body == {"message": "because", "type": "kind", "param": "temperature", "code": status}


async def test_openai_stream_that_breaks_off_raises(api: Api) -> None:
    stream = await api.openai.chat.completions.create(
        model="glm-4.7-flash", messages=HELLO, stream=True, extra_body={"script": {"then": "drop"}}
    )
    for _ in range(3):
        await anext(aiter(stream))
    with pytest.raises(openai.APIError, match="before the answer was complete"):
        await anext(aiter(stream))


async def test_openai_without_the_key_is_refused(api: Api) -> None:
    for key in ("wrong", KEY[:-1]):
        with pytest.raises(openai.AuthenticationError):
            await api.openai.with_options(api_key=key).models.list()


async def test_caller_that_leaves_aborts_the_request_in_the_engine(api: Api) -> None:
    endless = {"script": {"events": 10_000, "pause": 0.05}}
    stream = await api.openai.chat.completions.create(
        model="glm-4.7-flash", messages=HELLO, stream=True, extra_body=endless
    )
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(5):
        while (await api.worker.engine_requests())[-1]["end"] != "aborted":
            await asyncio.sleep(0.05)


# In its own process: importing the SDK reads its variables once and for all.
ENDPOINT = """
import json, sys, runpod
runpod.api_key = sys.argv[1]
endpoint = runpod.Endpoint("any")
chat = {"messages": [{"role": "user", "content": "Hello"}]}
job = endpoint.run({"input": chat})
streaming = endpoint.run({"input": {**chat, "stream": True}})
endless = endpoint.run({"input": {**chat, "stream": True, "script": {"events": 10000, "pause": 0.05}}})
told = {
    "run_sync": endpoint.run_sync({"input": chat}),
    "run": job.output(timeout=20),
    "status": job.status(),
    "stream": list(streaming.stream()),
    "cancel": endless.cancel(),
    "health": endpoint.health(),
    "purge": endpoint.purge_queue(),
}
print(json.dumps(told))
"""


async def test_runpod_endpoint(api: Api) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        ENDPOINT,
        KEY,
        env={"RUNPOD_ENDPOINT_BASE_URL": f"{api.url}/v2"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    told = json.loads(output)
    assert told["run_sync"][0]["echo"]["messages"] == HELLO
    assert (told["run"], told["status"]) == (told["run_sync"], "COMPLETED")
    assert events_of(told["stream"])[-1] == "[DONE]"
    assert told["cancel"]["status"] == "CANCELLED"
    assert told["health"]["jobs"]["completed"] >= 2
    assert told["purge"] == {"removed": 0, "status": "completed"}


async def test_job_from_run_to_its_end_over_plain_http(api: Api) -> None:
    submitted = (await api.http.post("/run", json={"input": {"messages": HELLO, "stream": True}})).json()
    outputs: list[str] = []
    status = submitted["status"]
    while status in ("IN_QUEUE", "IN_PROGRESS"):
        answer = (await api.http.get(f"/stream/{submitted['id']}")).json()
        status = answer["status"]
        outputs += [chunk["output"] for chunk in answer["stream"]]
    report = (await api.http.get(f"/status/{submitted['id']}")).json()
    assert outputs == report["output"]
    assert events_of(outputs)[-1] == "[DONE]"
    assert report["status"] == "COMPLETED"
    assert {"delayTime", "executionTime", "workerId"} <= set(report)


async def test_strangers_take_no_jobs(api: Api) -> None:
    for path in ("/job-take/stranger", "/job-take-batch/stranger", "/job-stop/local-worker"):
        assert (await api.http.get(path)).status_code == 401
    assert (await api.http.post("/job-done/stranger/x", content="{}")).status_code == 401


async def test_log_says_where_and_keeps_the_keys_to_itself(api: Api) -> None:
    log = api.worker.log
    assert f"OpenAI's API: {api.url}/openai/v1" in log
    assert KEY not in log
    assert "Hello" not in log


async def test_port_in_use_is_an_error_in_one_line(api: Api) -> None:
    port = api.url.rpartition(":")[2]
    worker = await start_worker(None, arguments=("--rp_serve_api", "--rp_api_port", port))
    assert await worker.exit_code() == 1
    [line] = worker.log.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; --rp_api_port chooses another port" in line


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.1", "Cannot assign requested address"), ("no-such-host.invalid", "[Nn]ame")]
)
async def test_address_that_is_not_this_machine_s_is_not_blamed_on_the_port(host: str, why: str) -> None:
    worker = await start_worker(None, arguments=("--rp_serve_api", "--rp_api_host", host))
    assert await worker.exit_code() == 1
    line = worker.log.splitlines()[-1]
    assert re.search(rf"cannot listen on {host}:8000: .*{why}", line)
    assert "another port" not in line
    assert "Unknown error" not in line


async def test_engine_s_port_that_is_the_api_s_own_is_said_to_be_that() -> None:
    port = str(free_port())
    worker = await start_worker(None, {"PORT": port}, arguments=("--rp_serve_api", "--rp_api_port", port))
    assert await worker.exit_code() == 2
    [line] = worker.log.splitlines()
    assert f"PORT={port} is the port of the local API itself" in line


async def test_engine_that_does_not_start_ends_the_api() -> None:
    flags = ("--rp_serve_api", "--rp_api_port", str(free_port()))
    worker = await start_worker(None, arguments=flags, engine={"exit_code": 2})
    assert await worker.exit_code() == 1
    assert "while starting, the engine exited with code 2" in worker.log
    assert "Traceback" not in worker.log
