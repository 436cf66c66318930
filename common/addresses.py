"""Addresses: listening on one, the URL of a server on this machine, and what a plain path is."""

from __future__ import annotations

import re
import socket

# A path and nothing else: no host, no query, no escapes, no dot segments, no empty segments.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")


def url_of(host: str, port: int) -> str:
    """The URL of a server that listens on this address; if it listens on all of them, the URL is on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_plain_path(path: str) -> bool:
    """Whether the text is an absolute path of plain segments, with nothing special to a URL in it."""
    return _PLAIN_PATH.fullmatch(path) is not None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this address; a free port if it is 0. Raises OSError."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)
