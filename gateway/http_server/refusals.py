"""Errors as answers over HTTP, in the form of the API that was called: OpenAI's, or Anthropic's on `/v1/messages`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from common.errors import JobError, json_text
from gateway.error_events import error_payload
from gateway.http_server.access import KeyNeededError

# How long clients are told to wait when they may try again; with less, hundreds of them would keep a starting worker
# busy.
RETRY_AFTER_SECONDS = 5

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class MethodNotAllowedError(JobError):
    """None of the open routes takes this method."""

    code = HTTPStatus.METHOD_NOT_ALLOWED


def refusal(error: JobError, path: str, *, allowed_methods: str) -> tuple[int, Headers, bytes]:
    """The status, headers and body of an error's answer."""
    body = json_text(error_payload(error, path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", allowed_methods.encode()))
    if isinstance(error, KeyNeededError):
        headers.append((b"www-authenticate", b"Bearer"))
    return error.code, headers, body


async def refuse(send: Send, error: JobError, path: str) -> None:
    """Answer a request, whatever it was, with an error."""
    status, headers, body = refusal(error, path, allowed_methods="GET")
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
