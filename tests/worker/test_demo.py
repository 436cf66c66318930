"""`scripts/demo`, after its installation, with the scripted engine in SGLang's place."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scripts.worker_process import REPOSITORY, SCRIPTED_ENGINE, clean_environment

MESSAGE = {"content": "Fine.", "reasoning_content": "A greeting."}


def test_demo_shows_three_answers_beside_a_worker_that_has_the_default_port(tmp_path: Path) -> None:
    answers = {"answers": {"/v1/chat/completions": {"choices": [{"message": MESSAGE}]}}}
    environ = clean_environment() | {
        "PYTHONPATH": f"{SCRIPTED_ENGINE}{os.pathsep}{REPOSITORY}",
        "SCRIPTED_ENGINE": json.dumps([answers, answers, {}]),
        "SCRIPTED_ENGINE_STARTS": str(tmp_path / "starts"),
    }
    environ.pop("PORT", None)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # then somebody else has it
            taken.bind(("127.0.0.1", 30000))
            taken.listen()
        run = subprocess.run(
            [sys.executable, "-m", "scripts.demo"],
            cwd=REPOSITORY,
            env=environ,
            capture_output=True,
            timeout=120,
            check=False,
        )
    shown = run.stdout.decode()
    assert run.returncode == 0, run.stderr.decode()
    assert shown.count("job local_test COMPLETED") == 3
    assert shown.count("Fine.") == 2
    assert "word" in shown
    assert "then [DONE]" in shown
