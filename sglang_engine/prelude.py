"""SGLang, imports first: `python prelude.py GATE MODULE ARGUMENTS…` in place of `python -m MODULE ARGUMENTS…`.

Imports what the module will import, which takes no GPU memory. Then it waits until a byte can be read from the
descriptor GATE, and runs the module. It ends without a word if GATE is closed instead. It imports nothing from the
worker, and leaves no trace: SGLang's own processes, which import the main module again, see MODULE there.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from contextlib import suppress

# What takes the time in `sglang.launch_server` (0.5.23): its server, and with it torch, transformers and the scheduler.
IMPORTS = ("sglang.srt.server_args", "sglang.srt.entrypoints.http_server")


def main() -> None:
    """Import, wait, run."""
    gate, module = int(sys.argv[1]), sys.argv[2]
    sys.argv = [module, *sys.argv[3:]]
    sys.path[0] = os.getcwd()  # as for `python -m`, not the folder of this file
    with suppress(Exception):  # it fails again when the module runs, and is reported then
        for name in IMPORTS:
            importlib.import_module(name)
    told = os.read(gate, 1)
    os.close(gate)
    if told:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
