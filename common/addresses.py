"""Where what listens on this machine can be reached from it."""

from __future__ import annotations


def url_of(host: str, port: int) -> str:
    """The URL of a server by what it listens on; one that listens everywhere is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
