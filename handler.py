"""The front desk: a job's input becomes one request to the engine, and the engine's answer the job's outputs.

Run it as `python handler.py`: with a platform's variables in the environment it is a worker; with `--test_input` or a
`test_input.json` it answers one job and exits.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from dotenv import load_dotenv
from httpx_aiohttp import AiohttpTransport

import serverless
import streaming
from engine import Engine, EngineConfig
from errors import (
    AnswerCutOffError,
    EngineTimeoutError,
    EngineUnavailableError,
    InvalidInputError,
    JobError,
    RouteNotAllowedError,
    from_payload,
    from_response,
)
from serverless import Job, JobHandler
from settings import ConfigurationError, Settings

log = logging.getLogger("worker.handler")

Output = str | dict[str, Any] | list[Any]
"""One output of a job: a string of whole SSE events, a parsed JSON answer, or `{"error": "<JSON>"}` as the last."""

CHAT_PATH = "/v1/chat/completions"
GENERATE_PATH = "/generate"

ACCEPTED = (
    'Accepted are {"openai_route": "/v1/…", "openai_input": {…}}, {"messages": [{"role": …, "content": …}], …} and '
    '{"text": "…", "sampling_params": {…}} (or "input_ids" in place of "text")'
)

# What clients may use beside `/v1/…`: inference, and the read-only routes that they need. Everything else SGLang serves
# administers the engine (`/flush_cache`, `/update_weights_from_disk`) or prints its arguments (`/server_info`).
OPEN_ROUTES = frozenset(
    {
        GENERATE_PATH,
        "/encode",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/parse_function_call",
        "/separate_reasoning",
        "/model_info",
        "/get_model_info",
        "/health",
        "/ready",
        "/ping",
    }
)
# A path and nothing else: no host, no query, no escapes, no dot segments, no empty ones.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")

# Fields of the other two patterns; beside `openai_route` they would be ignored, which no client can mean.
_REQUEST_FIELDS = ("messages", "text", "input_ids", "sampling_params", "model", "stream")

DONE = b"data: [DONE]\n\n"
# The last events of the streams that do not end with `[DONE]`: Anthropic's `/v1/messages` and OpenAI's `/v1/responses`.
_LAST_EVENTS = (
    b"event: message_stop\n",
    b"event: response.completed\n",
    b"event: response.incomplete\n",
    b"event: response.failed\n",
    b"event: response.cancelled\n",
)

# uvicorn, under SGLang, closes a connection after 5 idle seconds (SGLANG_TIMEOUT_KEEP_ALIVE). Ours must go first, or a
# request can meet a connection that is just being closed.
KEEPALIVE_SECONDS = 2.0
CONNECT_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class UpstreamRequest:
    """One request to the engine. `body` is JSON text in UTF-8; `stream` says whether the client asked for events."""

    method: str
    path: str
    body: bytes | None = None
    stream: bool = False


def build_request(job_input: Any, *, served_model_name: str) -> UpstreamRequest:
    """Turn a job's input into the request that it stands for.

    Raises InvalidInputError for anything but one of the three accepted patterns, RouteNotAllowedError for a route that
    is not open to clients.
    """
    if not isinstance(job_input, dict):
        raise _refusal(f"'input' must be a JSON object, not {_kind(job_input)}", "input")
    given = [key for key in ("openai_route", "messages", "text", "input_ids") if key in job_input]
    if not given:
        wrong = "an 'openai_input' needs an 'openai_route'" if "openai_input" in job_input else "no request in 'input'"
        raise _refusal(wrong, "openai_route" if "openai_input" in job_input else "input")
    if "openai_route" in given:
        return _openai_request(job_input)
    if len(given) > 1:
        raise _refusal(f"only one of {_names(given)} can be given", given[1])
    if "openai_input" in job_input:
        raise _refusal(f"'openai_input' goes with 'openai_route', not with '{given[0]}'", "openai_input")
    if given == ["messages"]:
        return _chat_request(job_input, served_model_name)
    return _generate_request(job_input)


def _openai_request(job_input: dict[str, Any]) -> UpstreamRequest:
    stray = [key for key in _REQUEST_FIELDS if key in job_input]
    if stray:
        raise _refusal(f"{_names(stray)} beside 'openai_route' must be inside 'openai_input'", stray[0])
    path = _open_path(job_input["openai_route"])
    body = job_input.get("openai_input")
    if body is not None and not isinstance(body, dict):
        raise _refusal(f"'openai_input' must be a JSON object, not {_kind(body)}", "openai_input")
    if not body:
        return UpstreamRequest("GET", path)
    return UpstreamRequest("POST", path, _encode(body), _wants_stream(body))


def _chat_request(job_input: dict[str, Any], served_model_name: str) -> UpstreamRequest:
    messages = job_input["messages"]
    if not isinstance(messages, list) or not messages:
        raise _refusal("'messages' must be a non-empty array", "messages")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _refusal(f"'messages[{position}]' must be an object with a 'role'", "messages")
    model = job_input.get("model")
    if model is not None and not isinstance(model, str):
        raise _refusal(f"'model' must be a string, not {_kind(model)}", "model")
    body = job_input | {"model": model or served_model_name}
    return UpstreamRequest("POST", CHAT_PATH, _encode(body), _wants_stream(body))


def _generate_request(job_input: dict[str, Any]) -> UpstreamRequest:
    if "text" in job_input and not _is_one_or_many(job_input["text"], str):
        raise _refusal("'text' must be a string or a non-empty array of strings", "text")
    if "input_ids" in job_input and not _is_token_ids(job_input["input_ids"]):
        raise _refusal("'input_ids' must be a non-empty array of token ids, or of such arrays", "input_ids")
    parameters = job_input.get("sampling_params")
    if parameters is not None and not _is_one_or_many(parameters, dict):
        raise _refusal("'sampling_params' must be an object, or one object a prompt", "sampling_params")
    return UpstreamRequest("POST", GENERATE_PATH, _encode(job_input), _wants_stream(job_input))


def _open_path(route: Any) -> str:
    if not isinstance(route, str) or not route:
        raise _refusal("'openai_route' must be a path such as '/v1/chat/completions'", "openai_route")
    path = route if route.startswith("/") else f"/{route}"
    if not _PLAIN_PATH.fullmatch(path):
        raise _refusal(
            f"'openai_route' must be a plain path such as '/v1/chat/completions', not {_quote(route)}", "openai_route"
        )
    if path not in OPEN_ROUTES and not path.startswith("/v1/"):
        raise RouteNotAllowedError(
            f"the route {_quote(path)} is not open to clients; '/v1/…' and {', '.join(sorted(OPEN_ROUTES))} are",
            param="openai_route",
        )
    return path


def _wants_stream(body: dict[str, Any]) -> bool:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _refusal(f"'stream' must be true or false, not {_kind(stream)}", "stream")
    return bool(stream)


def _encode(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise _refusal("a string holds half of a surrogate pair, which is no valid text", "input") from None
    except ValueError:
        raise _refusal("NaN and Infinity are no valid JSON numbers", "input") from None
    except RecursionError:
        raise _refusal("the request is nested too deeply", "input") from None


def _is_one_or_many(value: Any, kind: type) -> bool:
    if isinstance(value, kind):
        return True
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def _is_token_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, list) for item in value):
        return all(_is_token_ids(item) and not isinstance(item[0], list) for item in value)
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _refusal(wrong: str, param: str) -> InvalidInputError:
    return InvalidInputError(f"{wrong}. {ACCEPTED}.", param=param)


def _names(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _quote(text: str, most: int = 80) -> str:
    return ascii(text if len(text) <= most else text[:most] + "...")


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


def create_handler(client: httpx.AsyncClient, *, served_model_name: str, request_timeout_seconds: float) -> JobHandler:
    """The handler of every job: an async generator function over the one shared client.

    It yields the job's outputs in order: strings of whole SSE events while the engine streams, or one parsed JSON
    answer. A failed job's last output is `{"error": "<JSON>"}`, the form in which the SDK takes an error; where events
    have been sent already, an SSE error event goes before it. It raises nothing but cancellation, and closes the
    engine's stream on every way out.
    """

    async def handler(job: Job) -> AsyncGenerator[Output, None]:
        began, events_sent = time.monotonic(), False
        try:
            request = build_request(job.get("input"), served_model_name=served_model_name)
            async with aclosing(_forward(client, request)) as outputs:
                async for output in outputs:
                    yield output
                    events_sent = events_sent or isinstance(output, str)
            how = "streamed" if request.stream else "answered"
            log.info("job %s: %s %s %s in %.2f s", job.get("id"), request.method, request.path, how, _since(began))
        except Exception as exception:
            error = _as_job_error(exception, request_timeout_seconds)
            log.warning("job %s: failed after %.2f s: %d %s", job.get("id"), _since(began), error.code, error.type)
            if isinstance(exception, _ErrorEvent):
                yield exception.event
            elif events_sent:
                yield _error_event(error)
            yield {"error": error.as_json()}

    return handler


class _ErrorEvent(Exception):
    """The engine reported an error inside its stream: what it means, and the event as the client shall see it."""

    def __init__(self, error: JobError, *, head: bytes = b"", fields: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.error = error
        # What the event had beside its error, as Anthropic's protocol has: the line `event: error`, the field `type`.
        self.event = _error_event(error, head=head, fields=fields)


async def _forward(client: httpx.AsyncClient, request: UpstreamRequest) -> AsyncGenerator[Output, None]:
    headers = {"Content-Type": "application/json"} if request.body else {}
    async with client.stream(request.method, request.path, content=request.body, headers=headers) as response:
        if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise from_response(response.status_code, await response.aread())
        content_type = response.headers.get("Content-Type", "")
        if content_type.startswith("text/event-stream"):
            async with aclosing(_events(response.aiter_raw())) as outputs:
                async for output in outputs:
                    yield output
        else:
            yield _answer(await response.aread(), is_json=content_type.startswith("application/json"))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The stream's events, batched. Raises _ErrorEvent for an error among them, AnswerCutOffError for an early end."""
    async with aclosing(streaming.batches(chunks)) as batches:
        async for batch in batches:
            data = b"".join(batch)
            # JSON escapes quotes inside text, so that these bytes are always a key or a value of the engine's own.
            if b'"error"' in data or b'"abort"' in data:
                for position, event in enumerate(batch):
                    if error := _error_in(event):
                        if position:
                            yield _text(b"".join(batch[:position]))
                        raise error
            if _is_complete(data):
                # Complete with its last event: a connection that breaks after it takes nothing away.
                yield _text(data if data.endswith(b"\n\n") else data + b"\n\n")
                return
            if not data.endswith(b"\n\n"):
                data = data[: -len(batch[-1])]  # half an event: the stream broke off inside it
            if data:
                yield _text(data)
    raise AnswerCutOffError("the engine's stream ended before the answer was complete")


def _is_complete(data: bytes) -> bool:
    if DONE in data or data.endswith(DONE.strip()):
        return True
    return b"event: " in data and any(last in data for last in _LAST_EVENTS)


def _error_in(event: bytes) -> _ErrorEvent | None:
    """The error that an event reports: an `error` object, or a generation that the engine aborted."""
    begin = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    try:
        payload = json.loads(event[begin + len(b"data:") :])
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    if payload.get("error"):
        fields = {key: value for key, value in payload.items() if key != "error"}
        return _ErrorEvent(from_payload(payload, HTTPStatus.OK), head=event[:begin], fields=fields)
    if aborted := _aborted(payload):
        return _ErrorEvent(aborted)
    return None


def _aborted(answer: dict[str, Any]) -> AnswerCutOffError | None:
    """The error that a generation aborted by the engine stands for: it ends like a short answer, and is none."""
    choices = answer.get("choices")
    endings = [c.get("finish_reason") for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    if isinstance(meta := answer.get("meta_info"), dict) and isinstance(reason := meta.get("finish_reason"), dict):
        endings.append(reason.get("type"))
    return AnswerCutOffError("the engine aborted the generation before it was complete") if "abort" in endings else None


def _answer(body: bytes, *, is_json: bool) -> Output:
    """An unstreamed answer: parsed, where it is JSON; else its text, or `{}` for an empty one (`/health`).

    Raises AnswerCutOffError for JSON that does not parse, UpstreamError for an error in the guise of an answer.
    """
    text = body.decode("utf-8", "replace")
    if not is_json:
        return text or {}
    try:
        answer: Output = json.loads(text, parse_constant=lambda _: None)  # NaN would make the output no valid JSON
    except ValueError:
        raise AnswerCutOffError("the engine's answer is not whole: it is no valid JSON") from None
    if "\\ud" in text.lower():
        # An escaped half of a surrogate pair cannot be sent on as UTF-8.
        answer = json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    if isinstance(answer, dict) and answer.get("error"):
        raise from_payload(answer, HTTPStatus.OK)
    for part in answer if isinstance(answer, list) else [answer]:  # a list answers a batch of prompts
        if isinstance(part, dict) and (aborted := _aborted(part)):
            raise aborted
    return answer


def _text(events: bytes) -> str:
    return events.decode("utf-8", "replace")


def _error_event(error: JobError, *, head: bytes = b"", fields: dict[str, Any] | None = None) -> str:
    return f"{_text(head)}data: {json.dumps((fields or {}) | error.payload())}\n\n"


def _as_job_error(exception: Exception, request_timeout_seconds: float) -> JobError:
    match exception:
        case JobError():
            return exception
        case _ErrorEvent():
            return exception.error
        case httpx.ConnectError():
            return EngineUnavailableError("the engine cannot be reached")
        case httpx.ReadTimeout():
            return EngineTimeoutError(f"the engine sent nothing for {request_timeout_seconds:g} s")
        case httpx.TransportError():  # this transport reports a lost connection as ConnectTimeout, among others
            return AnswerCutOffError("the connection to the engine broke before the answer was complete")
        case streaming.EventTooLargeError():
            return AnswerCutOffError(str(exception))
        case _:
            # The exception's own text may quote the job's content; its type and place do not.
            place = "".join(traceback.format_tb(exception.__traceback__))
            log.error("unexpected %s in the handler:\n%s", type(exception).__name__, place)
            return JobError()


def _since(began: float) -> float:
    return time.monotonic() - began


def create_client(config: EngineConfig, settings: Settings) -> httpx.AsyncClient:
    """The one client of the worker, over aiohttp's transport.

    At 300 streams of 100 events/s and a round trip of 30 ms to the platform, it carried 3.2 times the events of httpx's
    own transport, and the p95 of the first event fell from 8.3 s to 1.1 s (one after the other, on two cores shared
    with the scripted engine and the emulated platform).
    """
    headers = {"Accept-Encoding": "identity"}  # streams are framed as they come
    if config.api_key:
        headers["Authorization"] = f"Bearer {config.api_key}"
    transport = AiohttpTransport(
        limits=httpx.Limits(max_connections=0, keepalive_expiry=KEEPALIVE_SECONDS),  # 0 is unlimited to aiohttp
        verify=False,  # plain HTTP on this machine; loads no certificates
        trust_env=False,
    )
    return httpx.AsyncClient(
        base_url=config.base_url,
        headers=headers,
        timeout=httpx.Timeout(settings.request_timeout_seconds, connect=CONNECT_TIMEOUT_SECONDS, pool=None),
        transport=transport,
        trust_env=False,
    )


@asynccontextmanager
async def serve(config: EngineConfig, settings: Settings) -> AsyncGenerator[serverless.Service, None]:
    """Start the engine and wait until it is warm; give the handler over it; stop the engine at the end."""
    async with create_client(config, settings) as client, Engine(config) as engine:
        await engine.wait_until_ready(settings.startup_timeout_seconds)
        handler = create_handler(
            client,
            served_model_name=config.served_model_name,
            request_timeout_seconds=settings.request_timeout_seconds,
        )
        yield serverless.Service(handler=handler, wait_for_failure=engine.wait_for_failure)


def main() -> int:
    """The program: read the configuration, then run the mode that the command line and the environment ask for."""
    load_dotenv(Path.cwd() / ".env")  # what the environment has already wins
    arguments = serverless.parse_arguments(sys.argv[1:])
    serverless.configure_logging()
    try:
        settings = Settings.from_environ(os.environ)
        config = EngineConfig.from_environ(os.environ)
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return serverless.EXIT_USAGE
    os.environ["RUNPOD_LOG_LEVEL"] = settings.log_level  # unset, the SDK takes DEBUG and prints every output
    return serverless.run(lambda: serve(config, settings), settings, arguments)


if __name__ == "__main__":
    sys.exit(main())
