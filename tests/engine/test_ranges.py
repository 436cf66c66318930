"""The ranges in the table of options against the installed SGLang: its own defaults lie within them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from embedded.environment import engine_environment
from scripts.worker_process import REPOSITORY
from sglang_engine.ranges import RANGES

# In a process of its own: SGLang's import changes this one's logging and signals.
DEFAULTS = """
import json
from scripts.update_options import sglang_parser
actions = sglang_parser()._actions
print("\\n" + json.dumps({a.option_strings[0]: a.default for a in actions if isinstance(a.default, int | float)}))
"""


def test_sglang_s_own_defaults_are_within_the_ranges() -> None:
    environment = engine_environment({"PATH": os.environ["PATH"]})
    environment["PYTHONPATH"] += f":{REPOSITORY}"
    told = subprocess.run(
        [sys.executable, "-c", DEFAULTS], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    defaults = json.loads(told.stdout.splitlines()[-1])
    known = {flag: default for flag, default in defaults.items() if flag in RANGES}
    assert len(known) > 15, "most of them have a number as their default"
    assert {flag: value for flag, value in known.items() if not RANGES[flag].has(value)} == {}
