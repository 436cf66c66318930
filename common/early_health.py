"""Health checks before there is a web server, so that a platform sees a live port from the first moment.

Importing the program takes a second, and many on a disk that is cold. Until that is done a thread accepts connections
and answers health checks with 204, "initializing" to RunPod's load balancer. Whatever else is asked is left unread and
handed over with its connection, so no request gets lost. It imports nothing but small modules of the standard library.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self

from common.addresses import listen

INITIALIZING = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"

# Enough for a request's head; whoever sends a longer one waits for the server.
PEEK_BYTES = 8192
# Connections that wait for the server. Any more stay in the kernel's queue.
MOST_HELD = 256
JOIN_SECONDS = 5.0


class EarlyHealth:
    """Listens on a few addresses and answers health checks until `hand_over`."""

    def __init__(self, addresses: list[tuple[str, int]], paths: frozenset[str]) -> None:
        """addresses: host and port of each. Raises OSError if one of them is not available."""
        self._paths = frozenset(path.encode() for path in paths)
        self.listeners: dict[tuple[str, int], socket.socket] = {}
        self._held: dict[socket.socket, list[socket.socket]] = {}
        self._selector = selectors.DefaultSelector()
        try:
            for address in addresses:
                self.listeners[address] = listener = listen(*address)
                listener.setblocking(False)
                self._held[listener] = []
                self._selector.register(listener, selectors.EVENT_READ)
        except OSError:
            self._close_all()
            raise
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._answer, name="early health", daemon=True)

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def hand_over(self) -> dict[tuple[str, int], tuple[socket.socket, list[socket.socket]]]:
        """Stop answering. Gives, for each address, the listening socket and the connections that wait on it."""
        self._wake.send(b"\0")
        self._thread.join(JOIN_SECONDS)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:  # it has sent nothing yet
                self._held[key.data].append(key.fileobj)  # type: ignore[arg-type]
        self._selector.close()
        self._wake.close()
        self._woken.close()
        return {address: (listener, self._held[listener]) for address, listener in self.listeners.items()}

    def _close_all(self) -> None:
        self._selector.close()
        for listener in self.listeners.values():
            listener.close()

    def _answer(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                ready: socket.socket = key.fileobj  # type: ignore[assignment]
                if key.data is None:
                    self._accept(ready)
                else:
                    self._serve(ready, key.data)

    def _accept(self, listener: socket.socket) -> None:
        if len(self._selector.get_map()) + sum(map(len, self._held.values())) > MOST_HELD:
            self._selector.unregister(listener)
            return
        with suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, listener)

    def _serve(self, connection: socket.socket, listener: socket.socket) -> None:
        self._selector.unregister(connection)
        try:
            seen = connection.recv(PEEK_BYTES, socket.MSG_PEEK)
            if seen and not self._is_health_check(seen):
                self._held[listener].append(connection)
                return
            if seen:
                connection.recv(len(seen))
                connection.send(INITIALIZING)
        except OSError:
            pass
        connection.close()

    def _is_health_check(self, request: bytes) -> bool:
        words = request.split(b" ", 2)
        return (
            request.endswith(b"\r\n\r\n")
            and len(words) == 3
            and words[0] in (b"GET", b"HEAD")
            and words[1].partition(b"?")[0] in self._paths
        )
