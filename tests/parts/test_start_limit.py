"""The warning about RUNPOD_INIT_TIMEOUT, where a user meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.worker_process import REPOSITORY


def test_print_warns_on_an_endpoint_whose_limit_is_too_short(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path), "PRESET": "h100"}

    def said(**variables: str) -> str:
        command = [sys.executable, str(REPOSITORY / "engine.py"), "--print"]
        run = subprocess.run(command, cwd=tmp_path, env=environ | variables, capture_output=True, text=True, check=True)
        return run.stderr

    assert "RUNPOD_INIT_TIMEOUT" not in said()
    assert "Set RUNPOD_INIT_TIMEOUT=1500 on the endpoint" in said(RUNPOD_ENDPOINT_ID="e")
    assert "RUNPOD_INIT_TIMEOUT" not in said(RUNPOD_ENDPOINT_ID="e", RUNPOD_INIT_TIMEOUT="1500")
