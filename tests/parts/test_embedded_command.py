"""`python -m embedded` by a wrong command line: one line, before anything is made."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.worker_process import REPOSITORY, clean_environment


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "embedded", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_help_is_one_line() -> None:
    answer = run("--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: python -m embedded")
    assert answer.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--hlep"], "'--hlep' is not an option"),
        (["no-such-program", "handler.py"], "there is no program 'no-such-program'"),
        (["./handler.py"], "there is no program './handler.py'"),  # it is not executable
    ],
)
def test_typo_is_one_line(arguments: list[str], reason: str) -> None:
    answer = run(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(reason)
    assert answer.stderr.count("\n") == 1
