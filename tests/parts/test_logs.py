"""What is written to the log is passed on in order, masked, and never waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import standard_streams
from common.masking import Mask
from common.standard_streams import MAX_BACKLOG_BYTES, _Way

REPOSITORY = Path(__file__).parents[2]
LINE = b"a line of sixty-four bytes that says next to nothing at all....\n"
FAR_AWAY_SECONDS = 30.0


class Log:
    """A pipe that a way leads to; `write` is where a process would write."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe()
        self.write = os.dup(write_end)
        self.way = _Way([self.write], Mask(["hf_abcdef"]))
        os.close(write_end)

    def read_to_end(self) -> bytes:
        """All that comes out after the way is told to stop."""
        received: list[bytes] = []

        def receive() -> None:
            while data := os.read(self.read_end, 65536):
                received.append(data)

        reader = threading.Thread(target=receive)
        reader.start()
        self.way.stop()
        self.way.wait(time.monotonic() + FAR_AWAY_SECONDS)
        os.close(self.way._destination)  # the last one that could write to the pipe
        reader.join(FAR_AWAY_SECONDS)
        return b"".join(received)


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.way.stop()
    os.close(log.write)
    os.close(log.read_end)


def test_lines_are_passed_on_in_order_and_masked(log: Log) -> None:
    for number in range(1000):
        os.write(log.write, f"{number} hf_abc".encode())
        os.write(log.write, b"def\n")
    os.write(log.write, b"the last words, without an end")
    expected = "".join(f"{number} ***\n" for number in range(1000)) + "the last words, without an end\n"
    assert log.read_to_end().decode() == expected


def test_log_that_nobody_reads_holds_nobody_up_and_keeps_the_last_lines(log: Log) -> None:
    lines = 3 * MAX_BACKLOG_BYTES // len(LINE)
    for number in range(0, lines, 100):
        os.write(log.write, b"%012d " % number + LINE[13:] + LINE * 99)
    os.write(log.write, b"the reason\n")
    received = log.read_to_end()
    assert received.endswith(b"the reason\n")
    notes = [line for line in received.splitlines() if b"are missing here" in line]
    missing = sum(int(note.split()[1]) for note in notes)
    assert missing > 0
    assert received.count(b"\n") - len(notes) + missing == (lines + 99) // 100 * 100 + 1, "every line is accounted for"


def test_lines_that_cannot_be_written_are_lost_and_the_next_ones_tried(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    way = _Way([full], Mask())
    os.write(full, b"one\ntwo\n")
    deadline = time.monotonic() + FAR_AWAY_SECONDS
    while not way._backlog._lost_lines and time.monotonic() < deadline:
        time.sleep(0.01)
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), way._destination)  # the disk has room again
    os.write(full, b"three\n")
    way.stop()
    way.wait(deadline)
    note, line = (tmp_path / "log").read_text().splitlines()
    assert note.startswith("… 2 lines of this log are missing here")
    assert line == "three"


def test_non_blocking_log_is_waited_for(log: Log) -> None:
    os.set_blocking(log.way._destination, False)
    for _ in range(2000):
        os.write(log.write, LINE)
    assert log.read_to_end() == LINE * 2000


def test_lines_that_cannot_be_masked_are_left_out_and_the_next_ones_read(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(mask: Mask, text: str) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Mask, "__call__", broken)
        os.write(log.write, b"a secret\n")
        first = os.read(log.read_end, 65536)
    os.write(log.write, b"next\n")
    assert "could not be masked (MemoryError)" in first.decode()
    assert log.read_to_end() == b"next\n"


PROGRAM = """
import os, subprocess, sys
from common.masking import Mask
from common.standard_streams import never_wait_for_readers
flush = never_wait_for_readers(Mask(["hf_abcdef"]))
for number in range(50):
    print("out", number, "hf_abcdef", flush=True)
    print("err", number, file=sys.stderr)
    os.write(2, b"c %d\\n" % number)
if os.fork() == 0:
    print("a child's words, hf_abcdef")
    sys.stdout.flush()
    flush()
    os._exit(0)
os.wait()
subprocess.run(["echo", "a program's words, hf_abcdef"])
print("the last, not flushed")
flush()
os._exit(0)
"""


def run(*, stdout: int, stderr: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, cwd=REPOSITORY, text=True, timeout=FAR_AWAY_SECONDS, check=True, stdout=stdout, stderr=stderr
    )


def test_lines_keep_their_order_across_both_streams_that_lead_to_one_place() -> None:
    words = run(stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.splitlines()
    assert words[:150] == [
        words for number in range(50) for words in (f"out {number} ***", f"err {number}", f"c {number}")
    ]
    assert words[150:] == ["a child's words, ***", "a program's words, ***", "the last, not flushed"]


def test_streams_that_lead_to_two_places_stay_apart() -> None:
    ended = run(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ended.stdout.splitlines()[:2] == ["out 0 ***", "out 1 ***"]
    assert ended.stderr.splitlines()[:2] == ["err 0", "c 0"]


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_stream_that_was_closed_from_the_beginning_is_nothing_to_end_for(closed: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{PROGRAM}")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(tmp_path / "program.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=FAR_AWAY_SECONDS, check=False)
    assert ended.returncode == 0
    assert ("the last, not flushed" in ended.stdout) == ("1>" not in closed)
    assert ("err 49" in ended.stderr) == ("2>" not in closed)


def test_flush_gives_up_on_a_log_that_nobody_reads(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    program = PROGRAM.replace("range(50)", "range(20000)")
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stdout=write_end, stderr=write_end, check=True)
    assert time.monotonic() - began < FAR_AWAY_SECONDS
    assert standard_streams.FLUSH_SECONDS <= 2
    os.close(write_end)
    os.close(read_end)
