"""`python -m local_runpod`: serve the local RunPod and print what a worker needs to join it."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from contextlib import suppress

import httpx
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from local_runpod.access import Access
from local_runpod.app import create_app
from local_runpod.webhooks import Webhooks
from local_runpod.worker_environment import worker_environment

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 20.0
CONNECTIONS = 4096


class _Protocol(H11Protocol):
    """Closes a connection on which no request has begun in time. h11 bounds the size of a request's head."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self.cycle is None:
            self.transport.close()


def main() -> None:
    """Serve until interrupted. Exits with 1 if it cannot listen."""
    parser = argparse.ArgumentParser(prog="python -m local_runpod", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8000, help="default: 8000; 0 takes any free one")
    arguments = parser.parse_args()
    try:
        listener = _listen(arguments.host, arguments.port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
        sys.exit(f"cannot listen on {arguments.host}:{arguments.port}: {why}; see --host and --port")
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(arguments.host, arguments.host)
    base_url = str(httpx.URL(scheme="http", host=reachable, port=listener.getsockname()[1]))
    print("# A worker joins with:")
    for name, value in worker_environment(base_url).items():
        print(f"export {name}='{value}'")
    print(f"# Clients call {base_url}/v2/local/runsync; the API is described at {base_url}/docs", flush=True)
    access = Access(listens_on=arguments.host)
    config = uvicorn.Config(
        create_app(access=access, webhooks=Webhooks(only_public=not access.on_loopback)),
        log_level="warning",
        http=_Protocol,
        ws="none",
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=CONNECTIONS,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again, once it has stopped
        uvicorn.Server(config).run(sockets=[listener])


def port(text: str) -> int:
    """An argument as a port; argparse names this function in its own error."""
    if not 0 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: expected 0 to 65535")
    return number


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


if __name__ == "__main__":
    main()
