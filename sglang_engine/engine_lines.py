"""What the engine writes, as lines of the log: in its form, without noise, cut to what matters, and never a flood."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from common import meters
from common.logs import LogForm, line_of

# SGLang's defaults by field, each as Python writes it; scripts/update-options makes this from SGLang's own class.
DEFAULTS_FILE = Path(__file__).with_name("sglang_defaults.json")

# A start writes a few hundred lines at once, and a crash as many. What is steadily above this is a flood; RunPod's
# console would drop lines of its own choice from it.
BURST_LINES = 5000
LINES_A_SECOND = 100
LONGEST_VALUE = 120  # characters of an argument; the CUDA graphs' batch sizes have hundreds
PROGRESS_SECONDS = 10.0  # a progress bar is shown this often

# SGLang's own beginning of a line, "[2026-11-25 03:38:10 TP0] ", and uvicorn's, "INFO:     ".
_TIME = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: ([^\]]+))?\] ")
_LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL):\s+")
_ERROR = re.compile(r"Traceback \(most recent call last\)|hit an exception|^\w[\w.]*(?:Error|Exception)\b")
_WARNING = re.compile(r"\w*Warning: ")
_ARGUMENTS = "server_args={"
_TIMINGS = "Engine startup timings (s): "
_PHASE = re.compile(r"(\w+)=(\d+(?:\.\d+)?)")

_NOISE = (
    # The worker uses no images' decoder; the next line, indented, quotes the source.
    re.compile(r"torchvision\b.*Warning\b"),
    # Models other than the one that is served, each with a package that this image lacks.
    re.compile(r"Ignore import error when loading sglang\.srt\.models\."),
    # uvicorn's line for each request that went well, and for the probes of an engine that is still starting; the
    # worker logs every job itself.
    re.compile(r'"[A-Z]+ \S+ HTTP/1\.1" (?:2\d\d|503 Service Unavailable$)'),
)


class EngineLines:
    """Turns the engine's output into lines of the log."""

    def __init__(self, form: LogForm, clock: Callable[[], float] = time.monotonic) -> None:
        self._form = form
        self._clock = clock
        self._allowance = float(BURST_LINES)
        self._filled_at = clock()
        self._left_out = 0
        self._level = "INFO"
        self._in_noise = False
        self._progress_at = float("-inf")

    def of(self, text: str) -> str:
        """The lines for this much output, which ends with a line end; fewer in a flood."""
        self._refill()
        if self._allowance < 1:
            self._left_out += text.count("\n")
            return ""
        lines = [self._note()] if self._left_out else []
        for line, end in _lines(text):
            if not (end == "\r" and self._is_early()) and (said := self._said(line)) is not None:
                if self._allowance < 1:
                    self._left_out += 1
                    continue
                self._allowance -= 1
                lines.append(self._line(said, self._level))
        return "".join(lines)

    def rest(self) -> str:
        """What is left to say at the end."""
        return self._note() if self._left_out else ""

    def _said(self, line: str) -> str | None:
        """What a line says, without its time; None for noise. Sets the level."""
        began_at = _TIME.match(line)
        message = line[began_at.end() :] if began_at else line
        if message[:1].isspace():  # belongs to the line before it: a traceback's frames, a warning's source
            return None if self._in_noise else message
        self._in_noise = any(noise.search(message) for noise in _NOISE)
        if self._in_noise:
            return None
        if stated := _LEVEL.match(message):
            self._level, message = stated[1], message[stated.end() :]
        else:
            self._level = "ERROR" if _ERROR.search(message) else "WARNING" if _WARNING.search(message) else "INFO"
        if message.startswith(_TIMINGS):
            note_phases(message)
        if message.startswith(_ARGUMENTS):
            message = differing_arguments(message)
        return f"{began_at[1]}: {message}" if began_at and began_at[1] else message

    def _is_early(self) -> bool:
        """Whether a progress bar was shown only just now."""
        now = self._clock()
        if now - self._progress_at < PROGRESS_SECONDS:
            return True
        self._progress_at = now
        return False

    def _refill(self) -> None:
        now = self._clock()
        self._allowance = min(self._allowance + (now - self._filled_at) * LINES_A_SECOND, BURST_LINES)
        self._filled_at = now

    def _note(self) -> str:
        left_out, self._left_out = self._left_out, 0
        return self._line(
            f"… {left_out} lines of the engine are left out here: it wrote more than {LINES_A_SECOND} a second",
            "WARNING",
        )

    def _line(self, message: str, level: str) -> str:
        return f"{line_of(self._form, message, level=level, source='engine')}\n"


def note_phases(message: str) -> None:
    """Count the phases of a start, which SGLang lists at its end: `load_weight=0.03, cuda_graph={decode=1.0}, …`."""
    before, _, rest = message[len(_TIMINGS) :].partition("cuda_graph={")
    inner, _, after = rest.partition("}")
    for name, seconds in _PHASE.findall(before + after):
        meters.START_PHASE_SECONDS.set(float(seconds), name.removesuffix("_e2e"))
    graphs = sum(float(seconds) for _, seconds in _PHASE.findall(inner))
    meters.START_PHASE_SECONDS.set(graphs, "cuda_graphs")


_LINE = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    return ((found[1], found[2]) for found in _LINE.finditer(text) if found[1].strip())


def differing_arguments(message: str) -> str:
    """SGLang's list of its arguments, as it logs them (a Python dict, 10 KB), cut to those that are not its defaults.

    Values are compared as text: secrets have been masked by now, and an enumeration's member is not a literal.
    """
    defaults = _defaults()
    members = (member.partition(": ") for member in _members(message[len(_ARGUMENTS) :].removesuffix("}")))
    shown = (
        f"{name}: {value if len(value) <= LONGEST_VALUE else value[:LONGEST_VALUE] + '…'}"
        for name, _, value in members
        if not name.startswith("'_") and defaults.get(name.strip("'")) != value
    )
    return f"what differs from SGLang's defaults: {_ARGUMENTS}{', '.join(shown)}}}"


_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[\[{(<]|[\]})>]|, """)


def _members(text: str) -> Iterator[str]:
    """The members of a dict's text, split at its outermost commas."""
    depth = begin = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{(<":
            depth += 1
        elif token[0] in "]})>":
            depth -= 1
        elif token[0] == ", " and depth == 0:
            yield text[begin : token.start()]
            begin = token.end()
    yield text[begin:]


@cache
def _defaults() -> dict[str, str]:
    defaults: dict[str, str] = json.loads(DEFAULTS_FILE.read_text(encoding="utf-8"))
    return defaults
