"""`AGENT=true` on the real SGLang: its flags arrive, reasoning stays in the prompt, tool calls keep to their schema."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from embedded.conversations import GET_WEATHER
from embedded.environment import engine_environment
from local_runpod import JobState
from scripts.worker_process import Platform, Worker, command_line, running_platform, running_worker
from tests.waiting import START_SECONDS

pytestmark = pytest.mark.anyio

REASONING = "A question of geography. The capital of France is Paris."
EARLIER = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris.", "reasoning_content": REASONING},
    {"role": "user", "content": "Hello"},
]


@pytest.fixture(scope="module")
async def agent_platform() -> AsyncIterator[Platform]:
    async with running_platform() as platform:
        yield platform


@pytest.fixture(scope="module")
async def agent(agent_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    kernels = tmp_path_factory.mktemp("kernels")
    environment = engine_environment({}) | {"AGENT": "true", "KERNEL_CACHE_DIR": str(kernels)}
    async with running_worker(agent_platform, environment, start_seconds=START_SECONDS) as worker:
        yield worker


async def answer_to(platform: Platform, body: dict[str, Any]) -> dict[str, Any]:
    job = await platform.answer({"temperature": 0, "max_tokens": 200, **body}, 120)
    assert job.state is JobState.COMPLETED, job.error
    answer: dict[str, Any] = job.output[0]
    return answer


async def test_flags_reach_the_engine(agent: Worker) -> None:
    pid = agent.engine_pid()
    assert pid is not None
    words = command_line(pid)
    assert json.loads(words[words.index("--default-chat-template-kwargs") + 1]) == {"clear_thinking": False}
    environ = dict(pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if pair)
    assert environ["SGLANG_TOOL_STRICT_LEVEL"] == "2"
    assert environ["TRITON_CACHE_DIR"].startswith(environ["KERNEL_CACHE_DIR"])


async def test_earlier_reasoning_is_in_the_prompt(agent_platform: Platform, agent: Worker) -> None:
    async def prompt_tokens(**more: Any) -> int:
        count: int = (await answer_to(agent_platform, {"messages": EARLIER, **more}))["usage"]["prompt_tokens"]
        return count

    counted = await agent_platform.answer(
        {"openai_route": "/v1/tokenize", "openai_input": {"model": "glm-4.7-flash", "prompt": REASONING}}
    )
    reasoning_tokens = len(counted.output[0]["tokens"])
    assert reasoning_tokens > 5
    cleared = await prompt_tokens(chat_template_kwargs={"clear_thinking": True})
    # And one for `<think>`; the client's own word counts.
    assert await prompt_tokens() == cleared + reasoning_tokens + 1


async def test_thinking_blocks_of_anthropic_s_api_are_in_the_prompt_too(
    agent_platform: Platform, agent: Worker
) -> None:
    async def input_tokens(*blocks: dict[str, str]) -> int:
        said = {"type": "text", "text": "The capital of France is Paris."}
        messages = [EARLIER[0], {"role": "assistant", "content": [*blocks, said]}, EARLIER[2]]
        body = {"model": "glm-4.7-flash", "max_tokens": 8, "messages": messages}
        job = await agent_platform.answer({"openai_route": "/v1/messages", "openai_input": body}, 120)
        assert job.state is JobState.COMPLETED, job.error
        count: int = job.output[0]["usage"]["input_tokens"]
        return count

    without = await input_tokens()
    assert await input_tokens({"type": "thinking", "thinking": REASONING, "signature": ""}) > without + 5


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_tool_call_keeps_to_its_schema(agent_platform: Platform, agent: Worker, choice: str) -> None:
    """The model knows a call for Seoul by heart; the schema does not have it."""
    tool = copy.deepcopy(GET_WEATHER)
    tool["function"]["parameters"]["properties"]["city"]["enum"] = ["Oslo", "Paris"]
    answer = await answer_to(
        agent_platform,
        {
            "messages": [{"role": "user", "content": "What is the weather in Seoul?"}],
            "tools": [tool],
            "tool_choice": choice,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    )
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert calls, answer
    for call in calls:
        assert call["function"]["name"] == "get_weather"
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == {"city"}
        assert arguments["city"] in ("Oslo", "Paris")
