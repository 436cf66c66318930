"""The engine's port, claimed from before the engine starts until after its end.

SGLang listens only once it has loaded its model. Until then a second worker would find the port free, start an engine
too, and take the first one's answers for those of its own. So a worker holds a name of the port meanwhile: a Unix
socket in Linux's abstract namespace, which is as wide as the ports themselves (one network namespace), leaves no file,
and ends with its process.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

from sglang_engine.errors import EngineError
from sglang_engine.launch import Launch


def claim_port(launch: Launch) -> socket.socket:
    """A claim to the engine's port, which lasts until it is closed.

    Raises EngineError if something listens on the port or another process has claimed it, OSError if this process has
    no descriptor left.
    """
    if _is_listening(launch):
        raise _taken(launch)
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if sys.platform == "linux":
        try:
            claim.bind(f"\0sglang-engine/{launch.host}:{launch.port}")
        except OSError:
            claim.close()
            raise _taken(launch) from None
    return claim


def _taken(launch: Launch) -> EngineError:
    return EngineError(
        f"port {launch.port} is in use by another process; set PORT to a free one (ENGINE_PORT behind the HTTP server)",
        check="port",
    )


def _is_listening(launch: Launch) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(launch.host, launch.host)
    with suppress(OSError), socket.create_connection((host, launch.port), timeout=1.0):
        return True
    return False
