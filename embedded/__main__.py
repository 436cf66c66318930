"""`python -m embedded COMMAND…`: make the tiny GLM if needed, and run a command with it as the worker's model."""

from __future__ import annotations

import os
import sys
import time
import warnings

from embedded import cache
from embedded.environment import MODEL_FOLDER, engine_environment


def main() -> None:
    """Replace this process with the command; without one, only make the model."""
    if not cache.is_made(MODEL_FOLDER):
        print("Making the tiny GLM (half a minute, once)…", file=sys.stderr, flush=True)
        began = time.monotonic()
        warnings.simplefilter("ignore")  # torchvision lacks image codecs that nothing here uses
        from embedded import tiny_glm  # loads torch, which is only needed to make the model

        tiny_glm.make(MODEL_FOLDER, report=lambda line: print(f"    {line}", file=sys.stderr, flush=True))
        print(f"Made it in {time.monotonic() - began:.0f} s.", file=sys.stderr, flush=True)
    if command := sys.argv[1:]:
        os.execvpe(command[0], command, engine_environment(os.environ))  # noqa: S606 (the caller's own command)


if __name__ == "__main__":
    main()
