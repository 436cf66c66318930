"""How errors are reported: in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, on every route.

Only Anthropic's `/v1/messages` has its own, `{"type": "error", "error": {"type", "message"}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

RETRY_AFTER_SECONDS = 5  # how long clients are told to wait when they may try again

# https://platform.openai.com/docs/guides/error-codes
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_ROUTE = re.compile(r"(?:/v2/[^/]+)?/openai(/.*)")


def refusal(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a call of this path that is refused here. 429 and 503 say when to try again."""
    headers = dict(headers or {})
    if status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    match = _OPENAI_ROUTE.fullmatch(path)
    return JSONResponse(in_form_of(match[1] if match else path, openai_error(message, status), status), status, headers)


def openai_error(message: str, status: int) -> dict[str, Any]:
    """An error's fields, as in OpenAI's API."""
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": None, "code": status}


def in_form_of(route: str, error: dict[str, Any], status: int) -> dict[str, Any]:
    """The body of an error's answer on a route such as `/v1/messages`, from its fields as in OpenAI's API."""
    if not _is_anthropic(route):
        return {"error": error}
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.get("message")}}


def error_event(route: str, error: dict[str, Any], status: int) -> str:
    """An error as the last event of a route's stream."""
    body = in_form_of(route, error, status)
    if _is_anthropic(route):
        return f"event: error\ndata: {_json(body)}\n\n"
    if route.startswith("/v1/responses"):
        # The event of OpenAI's reference, and the field by which its SDK raises.
        flat = {"code": str(error.get("code")), "message": error.get("message"), "param": error.get("param")}
        return f"event: error\ndata: {_json({'type': 'error', **flat, 'sequence_number': 0, **body})}\n\n"
    return f"data: {_json(body)}\n\n"


def ends_by_itself(events: str) -> bool:
    """Whether the last of these events already reports an error, or the end of the stream."""
    last = events.rstrip("\n").rpartition("\n\n")[2]
    lines = last.split("\n")
    data = "\n".join(line.removeprefix("data:").strip() for line in lines if line.startswith("data:"))
    if data == "[DONE]":
        return True
    try:
        payload = json.loads(data)
    except ValueError:
        return False
    if not isinstance(payload, dict):
        return False
    return bool(payload.get("error")) or payload.get("type") in ("error", "response.failed")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def _is_anthropic(route: str) -> bool:
    return route == "/v1/messages" or route.startswith("/v1/messages/")
