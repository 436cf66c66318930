"""The processes of a worker's heartbeat, as the system tells them."""

from __future__ import annotations

from scripts.worker_process import Worker, children_of, command_line


def keeper_of(worker: Worker) -> int | None:
    """The heartbeat's keeper: the forked copy of the worker that has forked a copy itself."""
    for child in worker.children():
        if command_line(child) == command_line(worker.process.pid) and children_of(child):
            return child
    return None
