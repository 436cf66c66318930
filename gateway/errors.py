"""The gateway's own errors, and what the engine's errors mean: each becomes one error in OpenAI's shape.

JobError                   (common.errors)
├── InvalidInputError      400: the job's input is not an accepted request
├── RequestTooLargeError   413: its body exceeds the limit
├── RouteNotAllowedError   403: the route is not one that clients may use
├── NoSuchRouteError       404: there is nothing at this path (over HTTP)
├── UpstreamError          the engine answered with an error; its status code and message are kept
├── ResponseTooLargeError  502: the engine's unstreamed answer exceeds the limit
├── UnavailableError       503: the engine could not be reached (common.errors)
├── AnswerCutOffError      502: the engine stopped in the middle of an answer (common.errors)
└── EngineTimeoutError     504: the engine was silent for too long
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from common.errors import JobError
from common.masking import Mask
from gateway.validation_errors import read_validation_errors

MAX_MESSAGE_CHARACTERS = 2000  # validation errors quote the input that they refuse, which may be megabytes


class InvalidInputError(JobError):
    """The job's input is not an accepted request."""

    code = HTTPStatus.BAD_REQUEST


class RequestTooLargeError(JobError):
    """The request's body exceeds the limit."""

    code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class RouteNotAllowedError(JobError):
    """The route is not one that clients may use."""

    code = HTTPStatus.FORBIDDEN


class NoSuchRouteError(JobError):
    """There is nothing at this path."""

    code = HTTPStatus.NOT_FOUND


class UpstreamError(JobError):
    """The engine answered with an error."""


class ResponseTooLargeError(JobError):
    """The engine's unstreamed answer exceeds the limit."""

    code = HTTPStatus.BAD_GATEWAY


class EngineTimeoutError(JobError):
    """The engine was silent for too long."""

    code = HTTPStatus.GATEWAY_TIMEOUT


def from_response(status: int, body: bytes) -> UpstreamError:
    """The error in an upstream response with a status of 300 or more.

    Takes the shapes of SGLang 0.5.23: `{"object": "error", "message", "type", "param", "code"}` (chat),
    `{"error": {"message", …}}` (generate, responses, messages), `{"detail": …}` (FastAPI), and plain text.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = body.decode("utf-8", "replace")
    return from_payload(payload, status)


def from_payload(payload: Any, status: int = HTTPStatus.INTERNAL_SERVER_ERROR) -> UpstreamError:
    """The error in a parsed body, or in an event of a stream.

    Its type stays if it is a word as OpenAI's and Anthropic's are; SGLang also says `BadRequestError` and the like, in
    whose place goes the type that fits the code. `status` is the response's. If that is not an error status, as in a
    stream that began well, the payload's own `code` counts, else 500.
    """
    error = payload
    if isinstance(payload, dict):
        error = payload.get("error") or payload.get("detail") or payload
    fields = error if isinstance(error, dict) else {}
    code = status if status >= HTTPStatus.BAD_REQUEST else _error_code(fields)
    # A redirect is reported with its own status; an answer that began well had no error status.
    told = code if status < HTTPStatus.MULTIPLE_CHOICES else status
    message = _message_of(error) or f"the engine answered with status {told} and no message"
    param, kind, reason = fields.get("param"), fields.get("type"), fields.get("code")
    if (wrong := read_validation_errors(message)) is not None:
        message, param = wrong.message, wrong.param
    return UpstreamError(
        message,
        code=code,
        kind=kind if isinstance(kind, str) and _TYPE.fullmatch(kind) else None,
        param=param if isinstance(param, str) else None,
        reason=reason if isinstance(reason, str) and not reason.isdecimal() else None,
    )


def make_presentable(error: JobError, mask: Mask) -> None:
    """Reduce an error to what a client may see: no secrets, and nothing internal from the engine's own message.

    Masked first and cut last: otherwise half a secret could be left at the cut.
    """
    mask.error(error, most=4 * MAX_MESSAGE_CHARACTERS)
    if isinstance(error, UpstreamError):
        error.message = scrub(error.message) or f"the engine answered with status {error.code} and no message"


def presentable_body(body: bytes, mask: Mask) -> bytes:
    """An error's body from the engine as a client may see it: exactly as it is, if there is nothing to hide in it."""
    text = body.decode("utf-8", "replace")
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        shown = scrub(mask(text))
        return body if shown == text.strip() else shown.encode()
    shown_payload = _presentable(payload, mask)
    return body if shown_payload == payload else json.dumps(shown_payload, ensure_ascii=False).encode()


def _presentable(value: Any, mask: Mask) -> Any:
    if isinstance(value, str):
        shown = scrub(mask(value))
        return value if shown == value.strip() else shown
    if isinstance(value, dict):
        return {key: _presentable(item, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [_presentable(item, mask) for item in value]
    return value


def scrub(message: str) -> str:
    """The message without stack traces and file paths, and of bounded length.

    SGLang's own messages carry both: a validation error ends with the source file and line of the route.
    """
    kept: list[str] = []
    in_frame = False
    for line in message.splitlines():
        if _FRAME.match(line):
            in_frame = True
        elif not (in_frame and line[:1].isspace()):
            in_frame = False
            if not _TRACEBACK.match(line):
                kept.append(line.rstrip())
    text = _PATH.sub("<path>", "\n".join(kept)).strip()
    if len(text) > MAX_MESSAGE_CHARACTERS:
        text = text[:MAX_MESSAGE_CHARACTERS] + "… (cut)"
    return text


_TRACEBACK = re.compile(r"\s*Traceback \(most recent call last\)")
_FRAME = re.compile(r'\s*File "[^"]*"(, line \d+)?')
# An absolute path of two parts or more, outside a URL; the API's own routes are not secret.
_PATH = re.compile(r"file://\S+|(?<![\w/:.<])~?/(?!v1/)(?:[\w.@+~-]+/)+[\w.@+~-]*")


_TYPE = re.compile(r"[a-z]+(?:_[a-z]+)*")

# The status of an error that an event reports without a `code`, as Anthropic's do, if its type leaves no doubt.
_STATUS_OF_TYPE: dict[str, int] = {
    "invalid_request_error": HTTPStatus.BAD_REQUEST,
    "authentication_error": HTTPStatus.UNAUTHORIZED,
    "permission_error": HTTPStatus.FORBIDDEN,
    "not_found_error": HTTPStatus.NOT_FOUND,
    "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "rate_limit_error": HTTPStatus.TOO_MANY_REQUESTS,
}


def _error_code(fields: dict[str, Any]) -> int:
    code, kind = fields.get("code"), fields.get("type")
    if isinstance(code, int) and 400 <= code <= 599:
        return code
    return _STATUS_OF_TYPE.get(kind if isinstance(kind, str) else "", HTTPStatus.INTERNAL_SERVER_ERROR)


def _message_of(error: Any) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        message = error.get("message")
        return message if isinstance(message, str) else ""
    if isinstance(error, list):  # FastAPI's validation errors: [{"loc": ["body", "text"], "msg": "Field required"}, …]
        return "; ".join(_validation_message(entry) for entry in error)
    return ""


def _validation_message(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    loc = entry.get("loc")
    place = ".".join(map(str, loc)) if isinstance(loc, (list, tuple)) else str(loc or "")
    return f"{place}: {entry.get('msg')}" if place else str(entry.get("msg"))
