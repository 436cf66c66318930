"""Make the tiny GLM if needed, and run a command with it as the worker's model."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings

from embedded import cache
from embedded.environment import MODEL_FOLDER, engine_environment

USAGE = "usage: python -m embedded [COMMAND [ARGUMENT…]]: makes the tiny GLM if needed, and runs the command with it"


def main() -> int:
    """Replace this process with the command; without one, only make the model. Returns 2 for a wrong command."""
    command = sys.argv[1:]
    if command[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if command and (reason := _why_not(command[0])):
        print(f"{reason}; {USAGE}", file=sys.stderr)
        return 2
    if not cache.is_made(MODEL_FOLDER):
        print("Making the tiny GLM (half a minute, once)…", file=sys.stderr, flush=True)
        began = time.monotonic()
        warnings.simplefilter("ignore")  # torchvision lacks image codecs that nothing here uses
        from embedded import tiny_glm  # loads torch, which is only needed to make the model

        tiny_glm.make(MODEL_FOLDER, report=lambda line: print(f"    {line}", file=sys.stderr, flush=True))
        print(f"Made it in {time.monotonic() - began:.0f} s.", file=sys.stderr, flush=True)
    if command:
        try:
            os.execvpe(command[0], command, engine_environment(os.environ))  # noqa: S606 (the caller's own command)
        except OSError as error:  # a script without its first line, say
            print(f"{command[0]!r} cannot be run: {error.strerror}; {USAGE}", file=sys.stderr)
            return 2
    return 0


def _why_not(program: str) -> str | None:
    """Why this is not a program to run; None if it is one."""
    if program.startswith("-"):
        return f"{program!r} is not an option"
    if shutil.which(program) is None:
        return f"there is no program {program!r}"
    return None


if __name__ == "__main__":
    sys.exit(main())
