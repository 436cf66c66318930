"""Posts to the platform over the worker's own connections, with the headers and credentials of the SDK's session.

The SDK's session (aiohttp) takes 0.2 to 0.4 ms of CPU for a post, and a busy worker makes thousands of them a second;
docs/performance.md has what these take. As in the SDK: TLS is verified, with certifi's roots (SSL_CERT_FILE or
SSL_CERT_DIR name others), no proxy is used, and a connection is kept for 15 s. Redirects are not followed: that would
turn a post into a GET without a body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from common.http1 import WRITE_PIECE_BYTES, Connection, Connections, Timeouts

# The SDK's session would wait 600 s; it is better to send a post that hangs once more.
POST_SECONDS = 60.0
CONNECT_SECONDS = 30.0
_TIMEOUTS = Timeouts(connect=CONNECT_SECONDS, read=POST_SECONDS, write=POST_SECONDS, pool=POST_SECONDS)
KEEPALIVE_SECONDS = 15.0
# Nobody reads the body of an answer; a connection with more of it than this is closed rather than kept.
MAX_ANSWER_BYTES = 64 * 1024

_Origin = tuple[str, str, int]


class AddressError(ValueError):
    """An address that nothing can be posted to; the text says what is wrong with it."""


class Poster:
    """Sends posts, over as many connections as there are posts at a time."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """headers: go with every post."""
        self._headers = [(name, value) for name, value in headers.items()]
        self._connections: dict[_Origin, Connections] = {}
        self._tls: ssl.SSLContext | None = None

    def channels(self, url: str, headers: Mapping[str, str]) -> Channels:
        """Where to post to, prepared for many jobs. Raises AddressError.

        headers: go with each of these posts, in place of the poster's own of the same name. There and in the URL's path
        and query, `$ID` stands for a job's id.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise AddressError("it is not a URL") from error
        if parts.scheme not in ("http", "https") or not host:
            raise AddressError("it is not an http or https URL")
        origin = parts.scheme, host, port or (443 if parts.scheme == "https" else 80)
        names = {name.lower() for name in headers}
        own = [(name, value) for name, value in self._headers if name.lower() not in names]
        address = parts.netloc.rpartition("@")[2]
        target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_KEPT)
        of_job = [f"POST {target} HTTP/1.1", *(_line(name, value) for name, value in headers.items())]
        of_all = [f"Host: {address}", "Accept: */*", *(_line(name, value) for name, value in own)]
        return Channels(self._connections_to(origin), "\r\n".join([*of_job, ""]), "\r\n".join(of_all))

    def close(self) -> None:
        """Close the connections."""
        for connections in self._connections.values():
            connections.close()

    def _connections_to(self, origin: _Origin) -> Connections:
        if origin not in self._connections:
            scheme, host, port = origin
            if scheme == "https" and self._tls is None:
                self._tls = httpx.create_ssl_context()
            tls = self._tls if scheme == "https" else None
            self._connections[origin] = Connections(host, port, keepalive_seconds=KEEPALIVE_SECONDS, tls=tls)
        return self._connections[origin]


# What may be in a URL's path and query as it is; `%` too, since it is quoted already.
_KEPT = "%/:=&?~+!$,;'@()*[]|-._"


def _line(name: str, value: str) -> str:
    text = f"{name}: {value.strip()}"
    if any(character in text for character in "\r\n\0"):
        raise AddressError(f"the header {name} has a line break in it")
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        raise AddressError(f"the header {name} has a character that no header can have") from None
    return text


class Channels:
    """Addresses that differ in a job's id."""

    def __init__(self, connections: Connections, of_job: str, of_all: str) -> None:
        """of_job, of_all: the first lines of a post's head, with `$ID` for the id, and the others."""
        self._connections = connections
        self._of_job = of_job.split("$ID")
        self._of_all = of_all

    def of(self, job_id: str) -> Channel:
        """That of one job. job_id: quoted for a URL."""
        head = job_id.join(self._of_job) + self._of_all
        return Channel(self._connections, head.encode("latin-1"))


class Channel:
    """One address, with the head of its posts ready to be sent."""

    def __init__(self, connections: Connections, head: bytes) -> None:
        self._connections = connections
        self._head = head

    def post(self, body: bytes) -> Coroutine[Any, Any, int]:
        """Post; returns the status of the answer.

        Raises TimeoutError if there is no answer within POST_SECONDS, and httpx.TransportError (`common.http1`).
        """
        return self._post(body) if len(body) <= WRITE_PIECE_BYTES else self._post_in_time(body)

    async def _post_in_time(self, body: bytes) -> int:
        async with asyncio.timeout(POST_SECONDS):  # or one read piece by piece could take for ever
            return await self._post(body)

    async def _post(self, body: bytes) -> int:
        head = b"%b\r\nContent-Length: %d" % (self._head, len(body))
        connection = await self._connections.request(head, body, _TIMEOUTS)
        try:
            if not connection.is_over:
                await _read_on(connection)
            return connection.status
        finally:
            self._connections.release(connection)


async def _read_on(connection: Connection) -> None:
    """Read the rest of an answer, so that the connection can be kept, unless there is too much of it."""
    size = 0
    async with asyncio.timeout(POST_SECONDS):
        while size <= MAX_ANSWER_BYTES and (piece := await connection.read()):
            size += len(piece)
