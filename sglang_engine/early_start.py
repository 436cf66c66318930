"""The engine's process, started before anything else of a deployed worker.

SGLang imports for ten seconds and more before it touches the GPU. The worker has imports of its own, RunPod's SDK among
them, and the SDK's fitness checks, which expect a free GPU. So the engine is started first and does its imports
meanwhile (`prelude`); it goes on when it is told to, after the checks. Imports next to nothing, since it comes first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.descriptors import raise_descriptor_limit
from sglang_engine.errors import EngineError
from sglang_engine.launch import MODULE, Launch
from sglang_engine.port_claim import claim_port

GUARD = Path(__file__).with_name("guard.py")
PRELUDE = Path(__file__).with_name("prelude.py")


@dataclass(frozen=True)
class EarlyStart:
    """A started process that waits for `go_on`. Whoever takes it over owns its guard, socket and pipes."""

    launch: Launch
    """What was planned, and `started`: what it became with the models that are on disk."""
    started: Launch
    began: float
    """When it was started, as `time.monotonic()`."""
    guard: subprocess.Popen[bytes]
    line: socket.socket
    output: int
    """Where its output is read."""
    gate: int
    claim: socket.socket
    """To its port (`port_claim`)."""

    def go_on(self) -> None:
        """Let it do more than import."""
        with suppress(OSError):  # it has ended, which whoever watches it learns
            os.write(self.gate, b"!")
        os.close(self.gate)

    def give_up(self) -> None:
        """End it, and everything that it has started."""
        self.line.close()
        os.close(self.output)
        os.close(self.gate)
        self.guard.wait()
        self.claim.close()


def start_early(launch: Launch, environ: Mapping[str, str]) -> EarlyStart | None:
    """Start the engine. None if that does not work: the start that comes later says why."""
    try:
        claim = claim_port(launch)
    except (EngineError, OSError):
        return None
    began, started = time.monotonic(), launch.with_models_on_disk(environ)
    raise_descriptor_limit()
    line, theirs = socket.socketpair()
    output, output_end = os.pipe()
    gate_end, gate = os.pipe()
    command = [sys.executable, str(PRELUDE), str(gate_end), MODULE, *started.arguments]
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), *command],
            stdin=theirs.fileno(),
            stdout=output_end,
            stderr=output_end,
            env=started.child_environ(environ),
            pass_fds=[gate_end],
            start_new_session=True,
        )
    except OSError:
        line.close()
        os.close(output)
        os.close(gate)
        claim.close()
        return None
    finally:
        theirs.close()
        os.close(output_end)
        os.close(gate_end)
    return EarlyStart(launch, started, began, guard, line, output, gate, claim)
