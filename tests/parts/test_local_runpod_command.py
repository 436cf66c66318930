"""`python -m local_runpod`: what it prints, and how it fails."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from scripts.worker_process import REPOSITORY

COMMAND = [sys.executable, "-m", "local_runpod"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )


def test_free_port_is_printed_served_and_left_without_a_traceback() -> None:
    with subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = next(
                found for line in process.stdout if (found := re.search(r"(http://\S+)/v2/local/runsync", line))
            )
            health = httpx.get(f"{address[1]}/v2/local/health", timeout=30, trust_env=False)
            assert health.json()["jobs"]["inQueue"] == 0
        finally:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")


def test_port_that_is_taken_is_told_in_a_line_and_nothing_is_printed_to_join() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr == f"cannot listen on 127.0.0.1:{port}: Address already in use; see --host and --port\n"
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("port", "why"), [("99999", "99999 is not a port: expected 0 to 65535"), ("x", "invalid port value: 'x'")]
)
def test_what_is_not_a_port_is_refused(port: str, why: str) -> None:
    ended = run("--port", port)
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"argument --port: {why}\n")
