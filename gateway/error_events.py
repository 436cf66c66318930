"""An error as the last event of a stream, in the form that clients of its route understand.

Anthropic's SDK skips events without a name, and OpenAI's recognises an error by its field `error`. To both, a stream
that ends without such an event looks complete.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from common.errors import OPENAI_TYPES, JobError, json_text

MESSAGES_PATH = "/v1/messages"
RESPONSES_PATH = "/v1/responses"

# Where https://docs.anthropic.com/en/api/errors has another name than OpenAI, by status; any other 5xx is `api_error`.
_ANTHROPIC_TYPES = {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error", 529: "overloaded_error"}


def error_payload(error: JobError, path: str | None) -> dict[str, Any]:
    """An error as the body of an answer. path: the route that the request went to; None if it is not known."""
    payload = error.payload()
    if not _is_anthropic(path):
        return payload
    kind = error.type
    if kind in OPENAI_TYPES:
        usual = kind if error.code < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        kind = _ANTHROPIC_TYPES.get(error.code, usual)
    return {"type": "error", "error": {**payload["error"], "type": kind}}


def error_event(error: JobError, path: str | None) -> str:
    """The event. path: the route that the request went to; None if it is not known."""
    payload = error_payload(error, path)
    if _is_anthropic(path):
        return _named(payload)
    if path == RESPONSES_PATH:
        # The event of OpenAI's reference, and the field by which its SDK raises.
        flat = {"code": str(error.code), "message": error.message, "param": error.param, "sequence_number": 0}
        return _named({"type": "error", **flat, **payload})
    return f"data: {json_text(payload)}\n\n"


def _is_anthropic(path: str | None) -> bool:
    return path is not None and (path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/"))


def _named(data: dict[str, Any]) -> str:
    return f"event: error\ndata: {json_text(data)}\n\n"
