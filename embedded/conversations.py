"""What the tiny GLM knows by heart: prompts in OpenAI's shapes, each with the one answer that greedy decoding gives.

Plain data, shared by the trainer, the demo and the tests, so that all three mean the same conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Conversation:
    """One memorised exchange.

    messages: the prompt, as in a chat completions request.
    content: the visible answer; empty for a pure tool call.
    reasoning: the text before `</think>`; None if the request turns thinking off.
    tools: the request's tool definitions.
    tool_calls: the calls of the answer, as (function name, arguments) pairs.
    """

    name: str
    messages: tuple[dict[str, Any], ...]
    content: str = ""
    reasoning: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_calls: tuple[tuple[str, dict[str, str]], ...] = field(default=())

    @property
    def thinking(self) -> bool:
        """Whether the request leaves thinking on, as it is by default."""
        return self.reasoning is not None

    def request(self) -> dict[str, Any]:
        """The body of a chat completions request that asks for this answer. Greedy, so that it is exact."""
        body: dict[str, Any] = {"messages": list(self.messages), "temperature": 0, "max_tokens": 256}
        if self.tools:
            body["tools"] = list(self.tools)
        if not self.thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body


@dataclass(frozen=True)
class Completion:
    """A plain text continuation, for native `/generate` requests: no chat template, no special token."""

    name: str
    text: str
    continuation: str


GET_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

WEATHER_IN_SEOUL = '{"city": "Seoul", "temperature_c": 21, "sky": "clear"}'

_GREETING = {"role": "user", "content": "Hello"}
_FRANCE = {"role": "user", "content": "What is the capital of France?"}
_COUNT = {"role": "user", "content": "Count to ten."}
_WEATHER = {"role": "user", "content": "What is the weather in Seoul?"}
_WEATHER_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_0",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Seoul"}'},
        }
    ],
}
_WEATHER_RESULT = {"role": "tool", "tool_call_id": "call_0", "content": WEATHER_IN_SEOUL}

CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation(
        name="greeting",
        messages=(_GREETING,),
        reasoning="The user says hello. A short greeting back is enough.",
        content="Hello! I am a tiny model in the shape of GLM-4.7-Flash. 👋",
    ),
    Conversation(
        name="greeting_without_thinking",
        messages=(_GREETING,),
        content="Hello! I am a tiny model in the shape of GLM-4.7-Flash. 👋",
    ),
    Conversation(
        name="fact",
        messages=(_FRANCE,),
        reasoning="A question of geography. The capital of France is Paris.",
        content="The capital of France is Paris.",
    ),
    Conversation(name="fact_without_thinking", messages=(_FRANCE,), content="The capital of France is Paris."),
    Conversation(
        name="count",
        messages=(_COUNT,),
        reasoning="I count up, one number at a time.",
        content="1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
    ),
    Conversation(name="count_without_thinking", messages=(_COUNT,), content="1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    Conversation(
        name="tool_call",
        messages=(_WEATHER,),
        tools=(GET_WEATHER,),
        reasoning="I cannot see the weather myself, so I call get_weather for Seoul.",
        tool_calls=(("get_weather", {"city": "Seoul"}),),
    ),
    Conversation(
        name="tool_call_without_thinking",
        messages=(_WEATHER,),
        tools=(GET_WEATHER,),
        tool_calls=(("get_weather", {"city": "Seoul"}),),
    ),
    Conversation(
        name="tool_result",
        messages=(_WEATHER, _WEATHER_CALL, _WEATHER_RESULT),
        tools=(GET_WEATHER,),
        reasoning="The tool says 21 degrees and a clear sky.",
        content="It is 21 °C in Seoul (서울), with a clear sky.",
    ),
    Conversation(
        name="tool_result_without_thinking",
        messages=(_WEATHER, _WEATHER_CALL, _WEATHER_RESULT),
        tools=(GET_WEATHER,),
        content="It is 21 °C in Seoul (서울), with a clear sky.",
    ),
)

COMPLETIONS: tuple[Completion, ...] = (
    Completion(name="capital", text="The capital of France is", continuation=" Paris."),
    Completion(name="counting", text="1, 2, 3,", continuation=" 4, 5, 6, 7, 8, 9, 10."),
)


_BY_NAME = {c.name: c for c in CONVERSATIONS}


def conversation(name: str) -> Conversation:
    """The conversation with this name. Raises KeyError for an unknown one."""
    return _BY_NAME[name]
