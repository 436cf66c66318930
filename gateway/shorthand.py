"""Inputs as other workers take them, rewritten as the ones that this worker takes.

RunPod's console offers `{"prompt": "Hello World"}` as the first request of every endpoint, and the official workers for
vLLM and SGLang take `sampling_params` beside a prompt or messages. worker-vllm (src/handler.py) also takes any route as
`{"route", "body", "method"}`.
"""

from __future__ import annotations

import json
from typing import Any

from gateway.errors import InvalidInputError

# Sampling parameters of vLLM and SGLang that a chat request has by another name; all others are named alike.
_CHAT_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "include_stop_str_in_output": "no_stop_trim",
}


def is_shorthand(job_input: dict[str, Any]) -> bool:
    """Whether an input is a prompt, or messages with sampling parameters beside them."""
    return "prompt" in job_input or ("messages" in job_input and "sampling_params" in job_input)


def as_chat(job_input: dict[str, Any]) -> dict[str, Any]:
    """The chat that a shorthand asks for: a prompt becomes one message of the user, sampling parameters become fields.

    Raises InvalidInputError for a prompt that is not one string, and for a parameter that is given twice.
    """
    chat = {key: value for key, value in job_input.items() if key not in ("prompt", "sampling_params")}
    if "prompt" in job_input:
        chat = {"messages": [{"role": "user", "content": _prompt(job_input["prompt"])}], **chat}
        if chat.pop("apply_chat_template", True) is False:
            raise InvalidInputError(
                "'prompt' is always answered as a chat; for a prompt without the chat template, send it as 'text' or "
                "to /v1/completions",
                param="apply_chat_template",
            )
    for name, value in _chat_fields(job_input.get("sampling_params")).items():
        if name in chat and chat[name] != value:
            raise InvalidInputError(f"'{name}' is given twice, once in 'sampling_params'", param="sampling_params")
        chat[name] = value
    return chat


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    reason = "'prompt' must be a string: it becomes one message of a chat"
    if isinstance(prompt, list):
        reason += ". For several prompts send a job each, or an array as 'text' or to /v1/completions"
    raise InvalidInputError(reason, param="prompt")


def _chat_fields(parameters: Any) -> dict[str, Any]:
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInputError("'sampling_params' beside a chat must be an object", param="sampling_params")
    fields: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in ("messages", "model", "stream"):
            raise InvalidInputError(f"'{name}' goes beside 'sampling_params', not inside", param="sampling_params")
        for field, given in _translated(name, value):
            if field in fields:
                raise InvalidInputError(f"'{name}' says '{field}' a second time", param="sampling_params")
            fields[field] = given
    return fields


def _translated(name: str, value: Any) -> list[tuple[str, Any]]:
    """One sampling parameter as fields of a chat request."""
    if name == "logprobs" and type(value) is int:  # vLLM's parameter is the number of alternatives
        return [("logprobs", True), ("top_logprobs", value)]
    if name == "json_schema" and value is not None:  # SGLang's is the schema as text
        return [("response_format", {"type": "json_schema", "json_schema": {"name": "answer", "schema": _json(value)}})]
    return [(_CHAT_NAMES.get(name, name), value)]


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        raise InvalidInputError("'json_schema' must be a JSON schema", param="sampling_params") from None
