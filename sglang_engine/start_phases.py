"""Where the time of an engine's start goes, from the lines that SGLang writes meanwhile (0.5.23).

worker       from this process's start to the engine's; nothing at a restart
imports      until the weights begin to load: SGLang's imports, and what it does before
download     until the model is complete on disk, if it was not; known to ten seconds
weights      between "Load weight begin" and "Load weight end", of the model and of its draft
CUDA graphs  between "Capture … CUDA graph begin" and "… end"
warm-up      what comes after the last of these
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path

PHASES = ("worker", "imports", "download", "weights", "CUDA graphs", "warm-up")

_MARK = re.compile(r"(Load weight|Capture .*cuda graph) (begin|end)", re.IGNORECASE)
_START_TICKS = 19  # field of /proc/PID/stat after the process's name, counted from 0; man 5 proc_pid_stat


class StartPhases:
    """One start of an engine. Times are `time.monotonic()` seconds."""

    def __init__(self, launched_at: float, *, worker_began_at: float | None = None) -> None:
        """worker_began_at: when this process was started, if the engine starts for the first time."""
        self._launched_at = launched_at
        self._worker = launched_at - worker_began_at if worker_began_at is not None else 0.0
        self._began: dict[str, float] = {}  # of what has begun and not ended
        self._spent = {"weights": 0.0, "CUDA graphs": 0.0}
        self._first_at: float | None = None
        self._last_at = launched_at
        self._downloaded_at: float | None = None
        self._downloads = False

    @property
    def current(self) -> str:
        """The phase that it is in."""
        if self._began:
            phase = next(iter(self._began))
            return "download" if phase == "weights" and self._downloads else phase
        return "imports" if self._first_at is None else "warm-up"

    def see(self, text: str, now: float) -> None:
        """Take what the engine has just written; every scheduler writes its own lines, which count once."""
        for what, moment in _MARK.findall(text):
            phase = "weights" if what.lower().startswith("load") else "CUDA graphs"
            if moment.lower() == "begin":
                self._began.setdefault(phase, now)
                self._first_at = self._first_at or now
            elif phase in self._began:
                self._spent[phase] += now - self._began.pop(phase)
                self._last_at = now

    def downloads(self) -> None:
        """The model is not complete on disk."""
        self._downloads = True

    def downloaded(self, now: float) -> None:
        """The model is complete on disk, and was not at the start."""
        self._downloads = False
        self._downloaded_at = now

    def until(self, ready_at: float) -> dict[str, float]:
        """Seconds by phase, now that the engine is ready."""
        begins = self._first_at if self._first_at is not None else ready_at
        waited_from = max(self._launched_at, begins)
        download = max(0.0, self._downloaded_at - waited_from) if self._downloaded_at is not None else 0.0
        return {
            "worker": self._worker,
            "imports": begins - self._launched_at,
            "download": download,
            "weights": max(0.0, self._spent["weights"] - download),
            "CUDA graphs": self._spent["CUDA graphs"],
            "warm-up": ready_at - max(self._last_at, begins),
        }


def label_of(phase: str) -> str:
    """A phase as the metrics have it, in the form of SGLang's own list: `CUDA graphs` is `cuda_graphs`."""
    return phase.lower().replace(" ", "_").replace("-", "_")


def process_began_at() -> float | None:
    """When this process was started, as `time.monotonic()`; None where /proc does not say."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START_TICKS]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - age
    return None
