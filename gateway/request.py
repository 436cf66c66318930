"""What a job may ask for: its input becomes one request to the engine, or a refusal that says what is accepted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gateway.errors import InvalidInputError, RequestTooLargeError
from gateway.routes import (
    CHAT_PATH,
    GENERATE_PATH,
    answers_get,
    checked_query,
    open_path,
    takes_post_without_body,
)
from gateway.settings import DEFAULT_LIMITS, Limits
from gateway.shorthand import as_chat, is_shorthand
from gateway.tracing import take_trace

# Without double quotes: in a job's error, which is JSON inside JSON, each would be escaped twice.
ACCEPTED = (
    "Accepted are 'openai_route' with 'openai_input', 'messages' or a 'prompt' with the other fields of a chat, and "
    "'text' or 'input_ids' with 'sampling_params'; docs/requests.md shows each"
)

# The fields that say which pattern an input is.
_PATTERNS = ("openai_route", "route", "messages", "prompt", "text", "input_ids")
# Fields of the other patterns; next to a route they would be ignored, which cannot be what the client meant.
_REQUEST_FIELDS = ("messages", "prompt", "text", "input_ids", "sampling_params", "model", "stream")

METHODS = ("GET", "POST", "PUT", "DELETE")

# What SGLang's own models accept as true and false besides the real ones (pydantic's lax mode).
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


@dataclass(frozen=True)
class _RouteFields:
    """The names of the fields in an input that names a route."""

    route: str
    body: str
    method: str
    query: str


_OPENAI = _RouteFields("openai_route", "openai_input", "openai_method", "openai_query")
_WORKER_VLLM = _RouteFields("route", "body", "method", "query")


@dataclass(frozen=True)
class TokenIds:
    """The span of the token ids in a prompt, and the body's field that holds them."""

    field: str
    least: int
    greatest: int


@dataclass(frozen=True)
class UpstreamRequest:
    """One request to the engine. `body` is JSON text in UTF-8; `stream` says whether the client asked for events."""

    method: str
    path: str
    body: bytes | None = None
    stream: bool = False
    query: str = ""
    token_ids: TokenIds | None = None
    headers: tuple[tuple[bytes, bytes], ...] | None = None
    """What else to send with it, the body's type included; None for that alone."""


def build_request(
    job_input: Any,
    *,
    served_model_name: str,
    limits: Limits = DEFAULT_LIMITS,
    allowed_routes: frozenset[str] = frozenset(),
) -> UpstreamRequest:
    """Turn a job's input into a request.

    Raises InvalidInputError for anything but one of the three accepted patterns and for anything over a limit
    (RequestTooLargeError for the body's size), RouteNotAllowedError for a route that is not open to clients.
    """
    job_input, trace = take_trace(job_input)
    try:
        request = _request(job_input, served_model_name, limits, allowed_routes)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error.message}. {ACCEPTED}.", param=error.param) from None
    if request.body is not None and len(request.body) > limits.request_bytes:
        raise RequestTooLargeError(
            f"the request is {len(request.body)} bytes; up to {limits.request_bytes} are accepted (MAX_REQUEST_BYTES)"
        )
    if trace:
        body_type = ((b"Content-Type", b"application/json"),) if request.body else ()
        request = replace(request, headers=(*body_type, *trace))
    return request


def path_of(job_input: Any) -> str | None:
    """The path on the engine that a job's input asks for; None if it asks for none."""
    if not isinstance(job_input, dict):
        return None
    for field in (_OPENAI.route, _WORKER_VLLM.route):
        if field in job_input:
            route = job_input[field]
            return f"/{route.lstrip('/')}" if isinstance(route, str) else None
    return CHAT_PATH if "messages" in job_input or "prompt" in job_input else GENERATE_PATH


def unstreamed(request: UpstreamRequest) -> UpstreamRequest:
    """The same request, for one whole answer."""
    body = json.loads(request.body or b"{}")
    body.pop("stream_options", None)  # refused in a request without a stream
    body = json.dumps(body | {"stream": False}, ensure_ascii=False, separators=(",", ":")).encode()
    return replace(request, body=body, stream=False)


def check_body(body: bytes, limits: Limits = DEFAULT_LIMITS) -> TokenIds | None:
    """Check the JSON body of a request that is sent as it came; returns the span of its prompt's token ids, if any.

    Raises InvalidInputError for one over a limit. What is not JSON is left to the engine, which refuses it.
    """
    brackets = body.count(b"{") + body.count(b"[")
    try:
        parsed = json.loads(body)
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError:
        return None
    if brackets > limits.json_depth and _is_deeper(parsed, limits.json_depth):
        raise _too_deep(limits)
    if not isinstance(parsed, dict):
        return None
    _check_n(parsed, limits)
    return _token_ids(parsed)


def _request(job_input: Any, model: str, limits: Limits, allowed_routes: frozenset[str]) -> UpstreamRequest:
    if not isinstance(job_input, dict):
        raise InvalidInputError(f"'input' must be a JSON object, not {_kind(job_input)}", param="input")
    given = [key for key in _PATTERNS if key in job_input]
    if not given:
        for fields in (_OPENAI, _WORKER_VLLM):
            if fields.body in job_input:
                raise InvalidInputError(f"'{fields.body}' needs {_a(fields.route)}", param=fields.route)
        raise InvalidInputError("no request in 'input'", param="input")
    if given[0] in ("openai_route", "route"):
        return _route_request(
            job_input, _OPENAI if given[0] == "openai_route" else _WORKER_VLLM, limits, allowed_routes
        )
    if len(given) > 1:
        raise InvalidInputError(f"only one of {_names(given)} can be given", param=given[1])
    if "openai_input" in job_input:
        raise InvalidInputError(f"'openai_input' goes with 'openai_route', not with '{given[0]}'", param="openai_input")
    if given[0] in ("messages", "prompt"):
        return _chat_request(as_chat(job_input) if is_shorthand(job_input) else job_input, model, limits)
    return _generate_request(job_input, limits)


def _route_request(
    job_input: dict[str, Any], fields: _RouteFields, limits: Limits, allowed_routes: frozenset[str]
) -> UpstreamRequest:
    stray = [key for key in _REQUEST_FIELDS if key in job_input]
    if stray:
        raise InvalidInputError(f"with '{fields.route}', put {_names(stray)} inside '{fields.body}'", param=stray[0])
    if fields is _OPENAI and "route" in job_input:
        raise InvalidInputError("only one of 'openai_route', 'route' can be given", param="route")
    path = open_path(job_input[fields.route], allowed_routes, field=fields.route)
    body = job_input.get(fields.body)
    if body is not None and not isinstance(body, dict):
        raise InvalidInputError(f"'{fields.body}' must be a JSON object, not {_kind(body)}", param=fields.body)
    method = job_input.get(fields.method)
    if fields is _WORKER_VLLM and isinstance(method, str):
        method = method.upper()  # as there
    method = _method(method, path, body, field=fields.method)
    query = checked_query(job_input.get(fields.query), field=fields.query)
    if method == "GET" or body is None:
        return UpstreamRequest(method, path, query=query)
    return replace(_post(path, body, limits), method=method, query=query)


def _method(method: Any, path: str, body: dict[str, Any] | None, *, field: str) -> str:
    """The method: the one given, else it depends on the body.

    A job without a body is a GET. `{}` may be a POST's body, but it is also what RunPod sends for a GET: it counts as a
    GET on the routes where SGLang answers GETs, and as a POST's body everywhere else.
    """
    if method is not None:
        if method not in METHODS:
            raise InvalidInputError(f"'{field}' must be one of {', '.join(METHODS)}", param=field)
        return str(method)
    if body:
        return "POST"
    if body is None:
        return "POST" if takes_post_without_body(path) else "GET"
    return "GET" if answers_get(path) else "POST"


def _chat_request(job_input: dict[str, Any], served_model_name: str, limits: Limits) -> UpstreamRequest:
    messages = job_input["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidInputError("'messages' must be a non-empty array", param="messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidInputError(f"'messages[{position}]' must be an object with a 'role'", param="messages")
    model = job_input.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidInputError(f"'model' must be a string, not {_kind(model)}", param="model")
    return _post(CHAT_PATH, job_input | {"model": model or served_model_name}, limits)


def _generate_request(job_input: dict[str, Any], limits: Limits) -> UpstreamRequest:
    if "text" in job_input and not _is_one_or_many(job_input["text"], str):
        raise InvalidInputError("'text' must be a string or a non-empty array of strings", param="text")
    if "input_ids" in job_input and not _is_token_ids(job_input["input_ids"]):
        raise InvalidInputError(
            "'input_ids' must be a non-empty array of token ids, or of such arrays", param="input_ids"
        )
    parameters = job_input.get("sampling_params")
    if parameters is not None and not _is_one_or_many(parameters, dict):
        raise InvalidInputError(
            "'sampling_params' must be an object, or one object per prompt", param="sampling_params"
        )
    return _post(GENERATE_PATH, job_input, limits)


def _post(path: str, body: dict[str, Any], limits: Limits) -> UpstreamRequest:
    _check_n(body, limits)
    return UpstreamRequest(
        "POST", path, _encode(body, limits), _wants_stream(body.get("stream")), token_ids=_token_ids(body)
    )


def _token_ids(body: dict[str, Any]) -> TokenIds | None:
    """The token ids of a prompt given as ids, to /generate, completions or embeddings."""
    for field in ("input_ids", "prompt", "input"):
        ids: Any = body.get(field)
        if _is_token_ids(ids):
            flat = ids if isinstance(ids[0], int) else [token for prompt in ids for token in prompt]
            return TokenIds(field, min(flat), max(flat))
    return None


def _wants_stream(value: Any) -> bool:
    """How SGLang will read `stream`. The value itself is passed on unchanged."""
    if value is None or isinstance(value, bool):
        return bool(value)
    word = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if word not in _TRUE + _FALSE:
        raise InvalidInputError(f"'stream' must be true or false, not {_kind(value)}", param="stream")
    return word in _TRUE


def _check_n(body: dict[str, Any], limits: Limits) -> None:
    """Check `n` in an OpenAI body, or in a native one's sampling parameters (one set or many)."""
    parameters = body.get("sampling_params")
    for holder in [body, *(parameters if isinstance(parameters, list) else [parameters])]:
        n = holder.get("n") if isinstance(holder, dict) else None
        if isinstance(n, str):  # SGLang takes a number in quotes too
            with suppress(ValueError):
                n = float(n)
        if isinstance(n, (int, float)) and n > limits.n:
            raise InvalidInputError(f"'n' may be up to {limits.n} (MAX_N)", param="n")


def _encode(body: dict[str, Any], limits: Limits) -> bytes:
    try:
        encoded = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            "a string contains half of a surrogate pair, which is not valid text", param="input"
        ) from None
    except ValueError:
        raise InvalidInputError("NaN and Infinity are not valid JSON numbers", param="input") from None
    except RecursionError:
        raise _too_deep(limits) from None
    # Most requests have fewer brackets than the levels allowed, and need no closer look.
    if encoded.count(b"{") + encoded.count(b"[") > limits.json_depth and _is_deeper(body, limits.json_depth):
        raise _too_deep(limits)
    return encoded


def _too_deep(limits: Limits) -> InvalidInputError:
    return InvalidInputError(
        f"the request is nested too deeply; up to {limits.json_depth} levels are accepted (MAX_JSON_DEPTH)",
        param="input",
    )


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects nest deeper than this. Goes level by level instead of recursing."""
    level = [value]
    for _ in range(levels):
        level = [inner for outer in level for inner in _items(outer) if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def _items(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_one_or_many(value: Any, kind: type) -> bool:
    if isinstance(value, kind):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _is_token_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    prompts = value if all(isinstance(item, list) for item in value) else [value]
    return all(prompt and all(type(token) is int for token in prompt) for prompt in prompts)


def _a(field: str) -> str:
    return f"{'an' if field[0] in 'aeiou' else 'a'} '{field}'"


def _names(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _kind(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")
