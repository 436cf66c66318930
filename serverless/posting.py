"""Posts to the platform over the worker's own connections, with the headers and credentials of the SDK's session.

The SDK's session (aiohttp) takes 0.2 to 0.4 ms of CPU for a post, and a busy worker makes thousands of them a second;
docs/performance.md has what these take. As in the SDK: TLS is verified, with certifi's roots (SSL_CERT_FILE or
SSL_CERT_DIR name others), no proxy is used, and a connection is kept for 15 s. Redirects are not followed: that would
turn a post into a GET without a body.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
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

    def channel(self, url: str, headers: Mapping[str, str]) -> Channel:
        """Where to post to, prepared for many posts. Raises AddressError.

        headers: go with each of these posts, in place of the poster's own of the same name.
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
        lines = [f"POST {target} HTTP/1.1", f"Host: {address}", "Accept: */*"]
        lines += [_line(name, value) for name, value in (*own, *headers.items())]
        return Channel(self._connections_to(origin), "\r\n".join(lines).encode("latin-1"))

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


class Channel:
    """One address, with the head of its posts ready to be sent."""

    def __init__(self, connections: Connections, head: bytes) -> None:
        self._connections = connections
        self._head = head

    async def post(self, body: bytes) -> int:
        """Post; returns the status of the answer.

        Raises TimeoutError if there is no answer within POST_SECONDS, and httpx.TransportError (`common.http1`).
        """
        if len(body) <= WRITE_PIECE_BYTES:
            return await self._post(body)
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
