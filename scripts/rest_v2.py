"""RunPod's REST API v2, as far as scripts/deploy and scripts/bump need it.

Schema: https://api.runpod.io/v2/openapi.json. Errors have the form of RFC 9457, with `errors` for what a validation
found; here each becomes one line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.sse import EventFramer, EventTooLargeError

BASE_URL = "https://api.runpod.io/v2"
KEYS_PAGE = "https://console.runpod.io/user/settings"
USER_AGENT = "glm-flash-worker"  # without one of their own, clients are taken for bots
REQUEST_SECONDS = 30.0
TRIES = 5  # of what can be sent again
FIRST_PAUSE_SECONDS = 1.0  # between two tries, doubled each time
LONGEST_PAUSE_SECONDS = 60.0
MAX_LINE_BYTES = 1024 * 1024  # of a log


class ApiError(Exception):
    """The API refused a request or did not answer; the message is one line. status: None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same may succeed later: there was no answer, or one of a server in trouble."""
        return self.status is None or self.status == 429 or self.status >= 500


@dataclass(frozen=True)
class LogLine:
    """A line of a worker's log, and the id of its event, after which a broken stream goes on."""

    text: str
    event_id: str = ""


class RestV2:
    """A client of the API. Use `connect`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def connect(cls, key: str, base_url: str = BASE_URL) -> AsyncIterator[RestV2]:
        """A client with an API key of RunPod's, for the length of this context."""
        headers = {"Authorization": f"Bearer {key}", "User-Agent": USER_AGENT}
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=REQUEST_SECONDS) as client:
            yield cls(client)

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A new endpoint. Raises ApiError; without a status, it may have been created nevertheless."""
        return await self._json("POST", "/serverless", body, has=("id",))

    async def endpoint(self, endpoint_id: str) -> dict[str, Any]:
        """An endpoint."""
        return await self._json("GET", f"/serverless/{endpoint_id}", has=("name", "workers"))

    async def endpoints(self) -> list[dict[str, Any]]:
        """All endpoints of the account."""
        return list((await self._json("GET", "/serverless", has=("endpoints",)))["endpoints"])

    async def update(self, endpoint_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change an endpoint; fields that are not in the body stay."""
        return await self._json("PATCH", f"/serverless/{endpoint_id}", body)

    async def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint: its workers are ended, and its jobs cancelled."""
        await self._answered("DELETE", f"/serverless/{endpoint_id}")

    async def workers(self, endpoint_id: str) -> dict[str, Any]:
        """An endpoint's active workers and their number by status."""
        return await self._json("GET", f"/serverless/{endpoint_id}/workers", has=("workers", "summary"))

    async def releases(self, endpoint_id: str) -> dict[str, Any]:
        """An endpoint's releases, the newest first, and how many workers have it."""
        return await self._json("GET", f"/serverless/{endpoint_id}/releases")

    async def gpus(self) -> list[dict[str, Any]]:
        """The types of GPU, with pools and prices."""
        return list((await self._json("GET", "/catalog/gpus", has=("gpus",)))["gpus"])

    async def log_lines(
        self, endpoint_id: str, worker_id: str, *, tail: int, after: str = ""
    ) -> AsyncGenerator[LogLine, None]:
        """A worker's log: its last lines, and then what comes, until the API closes the stream. Raises ApiError.

        after: the id of the last event that is known; then only what follows it comes.
        """
        path = f"/serverless/{endpoint_id}/workers/{worker_id}/logs"
        framer = EventFramer(MAX_LINE_BYTES)
        timeout = httpx.Timeout(REQUEST_SECONDS, read=None)  # a worker may have nothing to say for hours
        headers = {"Last-Event-ID": after} if after else {}
        try:
            async with self._client.stream(
                "GET", path, params={"tail": tail}, headers=headers, timeout=timeout
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refused(response)
                async for chunk in response.aiter_bytes():
                    for line in _lines(framer.feed(chunk)):
                        yield line
        except (httpx.HTTPError, EventTooLargeError) as error:
            raise ApiError(f"the log of {worker_id} broke off: {_named(error)}") from error

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, has: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The answer of success, with these fields in it. Raises ApiError."""
        response = await self._answered(method, path, body)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiError(f"RunPod's answer to {method} {path} is not a JSON object", response.status_code)
        if missing := [name for name in has if name not in answer]:
            raise ApiError(f"RunPod's answer to {method} {path} has no {', '.join(missing)}", response.status_code)
        return answer

    async def _answered(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The answer of success. 429 is waited out, and what changes nothing is asked again."""
        for attempt in range(1, TRIES + 1):
            is_last = attempt == TRIES
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                if is_last or method != "GET":
                    raise ApiError(f"RunPod's API cannot be reached: {_named(error)}") from error
            else:
                if response.is_success:
                    return response
                may_repeat = response.status_code == 429 or (method == "GET" and response.status_code >= 500)
                if is_last or not may_repeat:
                    raise _refused(response)
                await asyncio.sleep(_asked_to_wait(response))
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last try returns or raises")


def _asked_to_wait(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), LONGEST_PAUSE_SECONDS)
    except ValueError:
        return 0.0


def _refused(response: httpx.Response) -> ApiError:
    """The problem that an answer describes, in one line."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    fields = problem if isinstance(problem, dict) else {}
    what = f"{response.status_code} {fields.get('title') or response.reason_phrase}".strip()
    errors = fields.get("errors")
    details = [str(fields.get("detail") or ""), *(map(str, errors) if isinstance(errors, list) else ())]
    message = f"RunPod refused it ({what}): {'; '.join(filter(None, details)) or 'it did not say why'}"
    if response.status_code == 401:
        message += f"; RUNPOD_API_KEY is not a valid key ({KEYS_PAGE})"
    if response.status_code == 403:
        message += f"; RUNPOD_API_KEY needs a key with the permission Read/Write, or All ({KEYS_PAGE})"
    return ApiError(message, response.status_code)


def _named(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()


def _lines(events: bytes) -> list[LogLine]:
    """The lines in a block of events, `id: …` and `data: {"source": …, "line": …, "ts": …}`."""
    found, event_id = [], ""
    for field in events.split(b"\n"):
        name, _, value = field.partition(b":")
        if name == b"id":
            event_id = value.decode("utf-8", "replace").strip()
        elif name == b"data":
            found.append(LogLine(_line(value), event_id))
    return found


def _line(data: bytes) -> str:
    try:
        entry = json.loads(data)
        return f"{entry['ts']} {entry['line']}"
    except (ValueError, KeyError, TypeError):
        return data.decode("utf-8", "replace").strip()
