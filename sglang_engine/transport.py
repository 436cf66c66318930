"""The way to the engine: the worker's own HTTP/1.1 connections (`common.http1`), as a transport for httpx.

Plain HTTP to one address, with request bodies in memory and no HEAD.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx

from common.http1 import Connection, Connections, Timeouts

CONNECTION = "connection"
"""The extension of a response with its connection, whose body can be held, and asked whether there is more of it."""


class EngineTransport(httpx.AsyncBaseTransport):
    """Connections to one server, each kept for a while for the next request."""

    def __init__(self, host: str, port: int, *, keepalive_seconds: float) -> None:
        """keepalive_seconds: how long a connection may be idle; less than the server allows."""
        self._connections = Connections(host, port, keepalive_seconds=keepalive_seconds)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return with the head of its response, whose stream then gives whatever arrives.

        httpx's timeouts, each from when its part begins: `pool` for a turn and a connection, `connect` for each attempt
        at one, `write` for each piece of the request, `read` for the whole head and then for each piece of the body.

        Raises httpx.TransportError of the kinds that httpx's own transport raises: PoolTimeout, ConnectError,
        ConnectTimeout, WriteTimeout, ReadTimeout, ReadError, RemoteProtocolError.
        """
        given = request.extensions.get("timeout", {})
        timeouts = Timeouts(given.get("connect"), given.get("read"), given.get("write"), given.get("pool"))
        connection = await self._connections.request(_head(request), request.content, timeouts)
        body = _Body(connection, self._connections.release)
        extensions = {CONNECTION: connection}
        response = httpx.Response(connection.status, headers=connection.headers, stream=body, extensions=extensions)
        response.headers.encoding = "latin-1"  # or httpx tries two others on each of them
        return response

    async def aclose(self) -> None:
        """Close the idle connections; the others close with their responses."""
        self._connections.close()


def _head(request: httpx.Request) -> bytes:
    line = b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)
    return b"\r\n".join([line, *(b"%b: %b" % header for header in request.headers.raw)])


class _Body(httpx.AsyncByteStream):
    """The rest of a response, in pieces as large as they come. Not a generator, which would cost more per piece."""

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self._connection: Connection | None = connection
        self._release = release

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if self._connection is None or not (piece := await self._connection.read()):
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        if self._connection is not None:
            self._release(self._connection)
            self._connection = None
