"""`python engine.py --print`: where each setting comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.worker_process import REPOSITORY


def test_print_tells_the_file_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTEXT_LENGTH=4096\nMAX_N=5\nSERVED_MODEL_NAME=from-file\n")
    environ = {"PATH": os.environ["PATH"], "SERVED_MODEL_NAME": "from-environment"}
    command = [sys.executable, str(REPOSITORY / "engine.py"), "--print"]
    shown = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60)
    sources = {line.split()[0]: line.split()[-1] for line in shown.stdout.splitlines()[2:]}
    assert (sources["CONTEXT_LENGTH"], sources["MAX_N"]) == (".env", ".env")
    assert (sources["SERVED_MODEL_NAME"], sources["HOST"]) == ("environment", "default")
