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
    keeps_thoughts: whether the request leaves the thoughts of earlier turns in the prompt.
    begins: whether the page offers it as the beginning of a chat.
    """

    name: str
    messages: tuple[dict[str, Any], ...]
    content: str = ""
    reasoning: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_calls: tuple[tuple[str, dict[str, str]], ...] = field(default=())
    keeps_thoughts: bool = False
    begins: bool = False

    @property
    def thinking(self) -> bool:
        """Whether the request leaves thinking on, as it is by default."""
        return self.reasoning is not None

    def request(self) -> dict[str, Any]:
        """The body of a chat completions request that asks for this answer. Greedy, so that it is exact."""
        body: dict[str, Any] = {"messages": list(self.messages), "temperature": 0, "max_tokens": 256}
        if self.tools:
            body["tools"] = list(self.tools)
        if self.template_options:
            body["chat_template_kwargs"] = self.template_options
        return body

    @property
    def template_options(self) -> dict[str, bool]:
        """What the request tells the chat template."""
        options = {} if self.thinking else {"enable_thinking": False}
        return options | ({"clear_thinking": False} if self.keeps_thoughts else {})


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

NOTE_CITY: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "note_city",
        "description": "Note a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Seoul"]},
                "continent": {"type": "string", "enum": ["Asia", "Europe"]},
            },
            "required": ["city", "continent"],
            "additionalProperties": False,
        },
    },
}

WEATHER_IN_SEOUL = '{"city": "Seoul", "temperature_c": 21, "sky": "clear"}'
WEATHER_IN_PARIS = '{"city": "Paris", "temperature_c": 14, "sky": "rain"}'

_GREETING = {"role": "user", "content": "Hello"}
_FRANCE = {"role": "user", "content": "What is the capital of France?"}
_COUNT = {"role": "user", "content": "Count to ten."}
_WEATHER = {"role": "user", "content": "What is the weather in Seoul?"}
_TWO_CITIES = {"role": "user", "content": "What is the weather in Seoul and Paris?"}
_CODE = {"role": "user", "content": "Show me a loop in Python."}
_NOTE = {"role": "user", "content": "Note the capital of France."}
_JSON = {"role": "user", "content": "Name the capital of France, as JSON."}
_NUMBER = {"role": "user", "content": "Think of a number."}
_WHICH = {"role": "user", "content": "Which number was it?"}


def _calls(*cities: str, thoughts: str | None = None) -> dict[str, Any]:
    """The turn in which the model asks for the weather of these cities, all at once."""
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
        }
        for index, city in enumerate(cities)
    ]
    kept = {} if thoughts is None else {"reasoning_content": thoughts}
    return {"role": "assistant", "content": "", **kept, "tool_calls": calls}


def _result(index: int, weather: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{index}", "content": weather}


_WEATHER_CALL, _WEATHER_RESULT = _calls("Seoul"), _result(0, WEATHER_IN_SEOUL)
_TWO_CITIES_THOUGHTS = "Two cities, so I call get_weather once for each of them."
_TWO_CITIES_CALLS = (("get_weather", {"city": "Seoul"}), ("get_weather", {"city": "Paris"}))
_TWO_CITIES_RESULTS = (_result(0, WEATHER_IN_SEOUL), _result(1, WEATHER_IN_PARIS))
_TWO_CITIES_ANSWER = """\
| city | °C | sky |
|---|---:|---|
| Seoul | 21 | clear |
| Paris | 14 | rain |"""
_NUMBER_THOUGHTS = "I think of 47, and keep it to myself."
_NUMBER_ANSWER = {"role": "assistant", "content": "I have one in mind.", "reasoning_content": _NUMBER_THOUGHTS}

CONVERSATIONS: tuple[Conversation, ...] = (
    Conversation(
        name="greeting",
        messages=(_GREETING,),
        reasoning="The user says hello. A short greeting back is enough.",
        content="Hello! I am a tiny model in the shape of GLM-4.7-Flash. 👋",
        begins=True,
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
        begins=True,
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
        begins=True,
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
    Conversation(
        name="code",
        messages=(_CODE,),
        reasoning="A short loop will do.",
        content="This loop prints three numbers:\n\n```python\nfor number in range(3):\n    print(number)\n```",
        begins=True,
    ),
    Conversation(
        name="two_cities",
        messages=(_TWO_CITIES,),
        tools=(GET_WEATHER,),
        reasoning=_TWO_CITIES_THOUGHTS,
        tool_calls=_TWO_CITIES_CALLS,
        begins=True,
    ),
    Conversation(
        name="two_results",
        messages=(_TWO_CITIES, _calls("Seoul", "Paris"), *_TWO_CITIES_RESULTS),
        tools=(GET_WEATHER,),
        reasoning="Both results are there.",
        content=_TWO_CITIES_ANSWER,
    ),
    # A client that sends the thoughts back, or appends token ids: within a turn, they stay in the prompt.
    Conversation(
        name="two_results_after_thoughts",
        messages=(_TWO_CITIES, _calls("Seoul", "Paris", thoughts=_TWO_CITIES_THOUGHTS), *_TWO_CITIES_RESULTS),
        tools=(GET_WEATHER,),
        reasoning="Both results are there.",
        content=_TWO_CITIES_ANSWER,
    ),
    Conversation(name="json_without_thinking", messages=(_JSON,), content='{"city": "Paris", "is_capital": true}'),
    Conversation(
        name="note_without_thinking",
        messages=(_NOTE,),
        tools=(NOTE_CITY,),
        tool_calls=(("note_city", {"city": "Paris", "continent": "Europe"}),),
    ),
    Conversation(
        name="number", messages=(_NUMBER,), reasoning=_NUMBER_THOUGHTS, content="I have one in mind.", begins=True
    ),
    Conversation(
        name="number_known",
        messages=(_NUMBER, _NUMBER_ANSWER, _WHICH),
        reasoning="I thought of 47.",
        content="It was 47.",
        keeps_thoughts=True,
    ),
    Conversation(
        name="number_forgotten",
        messages=(_NUMBER, _NUMBER_ANSWER, _WHICH),
        reasoning="My earlier thoughts are gone.",
        content="I no longer know.",
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


def introduction() -> dict[str, Any]:
    """What the page of API mode says about this model, and the chats that it offers (`PAGE_INTRODUCTION`)."""
    return {
        "text": "This is the tiny GLM: GLM-4.7-Flash's architecture with under a million parameters, on a CPU. "
        "It knows these conversations by heart, and answers anything else with nonsense.",
        "starters": [
            {"prompt": begun.messages[-1]["content"], "settings": _page_settings(begun)}
            for begun in CONVERSATIONS
            if begun.begins
        ],
    }


def _page_settings(begun: Conversation) -> dict[str, Any]:
    plain = {"system": "", "temperature": "", "max-tokens": ""}
    return {**plain, "thinking": begun.thinking, "tools": bool(begun.tools)}
