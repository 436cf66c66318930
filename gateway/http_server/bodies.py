"""What clients send: read within limits, and checked only as far as a rule needs it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from common.errors import JobError
from common.helper_process import HelperError, HelperProcess
from common.large_json import LARGE_BYTES
from gateway.errors import RequestTooLargeError
from gateway.request import TokenIds, check_body
from gateway.settings import Limits

log = logging.getLogger("worker.http")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MIB = 1024 * 1024
# A body stays in memory until its request is over, since it may have to be sent again.
MOST_BYTES_IN_MEMORY = 512 * MIB
# A client that is refused should get to read why, which it does only once it has sent its body.
MOST_DISCARDED_BYTES = 64 * MIB
DISCARD_SECONDS = 5.0


class UnsupportedBodyError(JobError):
    """The body is in an encoding that nobody here reads."""

    code = 415


class BodiesFullError(JobError):
    """The bodies of all requests together take up too much memory."""

    code = 429


class ClientLeftError(Exception):
    """The client hung up before its request was complete."""


class Bodies:
    """Reads and checks the bodies of all requests, which share one amount of memory."""

    def __init__(self, helper: HelperProcess, limits: Limits) -> None:
        self._helper = helper
        self._limits = limits
        self._bytes = 0

    @contextmanager
    def reader(self) -> Generator[Reader, None, None]:
        """Reads the body of one request, which counts as in memory within this context."""
        reader = Reader(self, self._limits.request_bytes)
        try:
            yield reader
        finally:
            self._bytes -= reader.size

    def take(self, size: int) -> None:
        """Count bytes that have arrived. Raises BodiesFullError."""
        self._bytes += size
        if self._bytes > MOST_BYTES_IN_MEMORY:
            raise BodiesFullError(f"requests take up more than {MOST_BYTES_IN_MEMORY // MIB} MiB; try again later")

    async def check(self, body: bytes, content_type: bytes) -> TokenIds | None:
        """Check a body, if it is JSON; returns the span of its prompt's token ids, if any.

        Raises JobError for one over a limit. Large ones are checked in a process of their own, since that takes long.
        """
        if not body or (content_type and b"json" not in content_type.lower()):
            return None  # a form, or something that SGLang refuses
        if len(body) < LARGE_BYTES:
            return check_body(body, self._limits)
        try:
            ids: TokenIds | None = await self._helper.run(check_large, body, limits=self._limits)
        except HelperError as error:
            log.error("a request of %d bytes could not be checked: %s", len(body), error)
            raise JobError("the request is too large for this worker to check") from None
        return ids


def check_large(text: bytes, *, limits: Limits) -> Iterator[TokenIds | None]:
    """`check_body` as a task for `HelperProcess`."""
    yield check_body(text, limits)


class Reader:
    """Reads the body of one request."""

    def __init__(self, bodies: Bodies, most_bytes: int) -> None:
        self.size = 0
        self._bodies = bodies
        self._most_bytes = most_bytes
        self._is_complete = False

    async def read(self, receive: Receive, announced_bytes: int) -> bytes:
        """The whole body. Raises JobError if it is too large, ClientLeftError if its client leaves.

        announced_bytes: its `Content-Length`; 0 if it has none.
        """
        if announced_bytes > self._most_bytes:
            raise self._too_large()
        pieces: list[bytes] = []
        while not self._is_complete:
            piece = await self._piece(receive)
            self.size += len(piece)
            self._bodies.take(len(piece))
            if self.size > self._most_bytes:
                raise self._too_large()
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @staticmethod
    async def forget(receive: Receive) -> None:
        """Read a body, within limits, only so that the client gets to read the answer."""
        seen, more = 0, True
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while more and seen < MOST_DISCARDED_BYTES:
                    message = await receive()
                    seen += len(message.get("body", b""))
                    more = bool(message.get("more_body"))

    async def discard(self, receive: Receive, announced_bytes: int) -> None:
        """Read what is left, within limits, and forget it, so that the client gets to read the answer.

        A body that is too large for that is left alone: what comes of it is dropped after the answer.
        """
        if announced_bytes > MOST_DISCARDED_BYTES:
            return
        seen = 0
        with suppress(TimeoutError, ClientLeftError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._is_complete and seen < MOST_DISCARDED_BYTES:
                    seen += len(await self._piece(receive))

    async def _piece(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeftError
        self._is_complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"the request is too large: up to {self._most_bytes} bytes are accepted (MAX_REQUEST_BYTES)"
        )
