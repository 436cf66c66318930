"""A web server beside the program's own work, in the same event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn

CLOSE_SECONDS = 1.0  # requests that are still open at the end are broken off after it


class PortInUseError(Exception):
    """The address cannot be listened on; the message names it."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the program."""
        yield


@asynccontextmanager
async def serving(app: Any, host: str, port: int) -> AsyncGenerator[int, None]:
    """Serve an ASGI app while this lasts; gives the port, which the system chooses for 0.

    Raises PortInUseError. What still waits for an answer when this ends should be let go by then.
    """
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=CLOSE_SECONDS)  # type: ignore[arg-type]
    with _listening(host, port) as listener:
        server = _Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started and not running.done():
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await running


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket, None, None]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise PortInUseError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    with listener:
        yield listener
