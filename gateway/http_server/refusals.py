"""Errors as answers over HTTP, in the form of the API that was called: OpenAI's, or Anthropic's on `/v1/messages`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from common.errors import JobError, json_text
from common.web_server import RETRY_AFTER_SECONDS
from gateway.deliver import Head
from gateway.error_events import error_payload
from gateway.errors import NoSuchRouteError, UpstreamError
from gateway.http_server.access import KeyNeededError

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


# What SGLang's web framework says, in the form of no API: it has no such route, or not with this method, or the route
# raised an error of which it tells nothing.
FRAMEWORKS_OWN: dict[int, bytes] = {
    HTTPStatus.NOT_FOUND: b'{"detail":"Not Found"}',
    HTTPStatus.METHOD_NOT_ALLOWED: b'{"detail":"Method Not Allowed"}',
    HTTPStatus.INTERNAL_SERVER_ERROR: b"Internal Server Error",
}


class MethodNotAllowedError(JobError):
    """The path does not take this method."""

    code = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, allowed: str) -> None:
        """allowed: the methods that it takes, as in the header `Allow`."""
        super().__init__(f"the method is not accepted here; accepted: {allowed}")
        self.allowed = allowed


def error_of_the_framework(head: Head, body: bytes, path: str) -> JobError | None:
    """The error in an answer of SGLang's that comes from its web framework and from none of its routes."""
    if body != FRAMEWORKS_OWN.get(head.status):
        return None
    match head.status:
        case HTTPStatus.NOT_FOUND:
            return NoSuchRouteError(f"there is no route {path!r}")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowedError(", ".join(v.decode() for name, v in head.headers if name.lower() == b"allow"))
        case _:
            return UpstreamError("the engine failed to handle this request", code=head.status)


def refusal(error: JobError, path: str) -> tuple[int, Headers, bytes]:
    """The status, headers and body of an error's answer."""
    body = json_text(error_payload(error, path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allowed.encode()))
    if isinstance(error, KeyNeededError):
        headers.append((b"www-authenticate", b"Bearer"))
    return error.code, headers, body


async def refuse(send: Send, error: JobError, path: str) -> None:
    """Answer a request, whatever it was, with an error."""
    status, headers, body = refusal(error, path)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
