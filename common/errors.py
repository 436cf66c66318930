"""The errors that every package knows.

JobError               what a failed job reports, whatever went wrong: one error in OpenAI's shape
├── UnavailableError   503: there is nobody to answer
└── AnswerCutOffError  502: the answer stopped before it was complete
StartError             the service that answers jobs did not start

The platform takes an error as a string only; a nested object would reach the client as a Python `repr`. So a failed
job's error is its object as JSON text.
"""

from __future__ import annotations

import json
import traceback
from http import HTTPStatus
from typing import Any

# https://platform.openai.com/docs/guides/error-codes, as the `openai` client's exceptions know them.
_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def json_text(value: Any) -> str:
    """JSON with its characters as they are: inside a JSON string, every escape would be doubled.

    Halves of surrogate pairs, which a quoted input may contain and UTF-8 cannot, become question marks.
    """
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


# The values of an error's `type` that a client may see.
OPENAI_TYPES = frozenset({*_TYPES.values(), "invalid_request_error", "server_error", "insufficient_quota"})


class JobError(Exception):
    """An error as the client will see it; without a message, a failure of the worker itself.

    code: an HTTP status code. kind: OpenAI's name for the kind of error. param: the field at fault, if known.
    reason: OpenAI's own word for what is wrong, such as `model_not_found`; the client sees it instead of the code.
    """

    code: int = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(
        self,
        message: str = "the worker failed to handle this job",
        *,
        code: int | None = None,
        kind: str | None = None,
        param: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = int(self.code if code is None else code)
        self.type = kind or _type_of(self.code)
        self.param = param
        self.reason = reason

    def payload(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        code = self.reason or self.code
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": code}}

    def as_json(self) -> str:
        """The payload as JSON that can be read where it is one string in another JSON."""
        return json_text(self.payload())


def code_of(error: str) -> int | None:
    """The HTTP status in a failed job's error; None if it has none, as a user's handler may report any text."""
    try:
        code = json.loads(error)["error"]["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return code if isinstance(code, int) and 400 <= code <= 599 else None


class UnavailableError(JobError):
    """There is nobody to answer: the engine is down, or the worker is stopping."""

    code = HTTPStatus.SERVICE_UNAVAILABLE


class AnswerCutOffError(JobError):
    """The answer stopped before it was complete."""

    code = HTTPStatus.BAD_GATEWAY


class StartError(Exception):
    """The service that answers jobs did not start. The message says why, as far as is known.

    check: one word for what was found wanting, which the platform is told. is_lasting: whether the next worker, on
    whatever host, would fail in the same way.
    """

    def __init__(self, message: str, *, check: str = "start", is_lasting: bool = False) -> None:
        super().__init__(message)
        self.check = check
        self.is_lasting = is_lasting


def type_and_place(exception: BaseException) -> tuple[str, str]:
    """The parts of an unexpected exception that may be logged: its own text may quote a job's content."""
    return type(exception).__name__, "".join(traceback.format_tb(exception.__traceback__))


def _type_of(status: int) -> str:
    fallback = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return _TYPES.get(status, fallback)
