"""SGLang's own parser of launch options as a process: a JSON list of words per line in, what it makes of them out."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from scripts.update_options import sglang_parser


class RefusedError(Exception):
    """The parser does not take these words."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise RefusedError(message)


def main() -> None:
    parser = sglang_parser(Parser)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            parsed = vars(parser.parse_args(json.loads(line)))
            answer: dict[str, Any] = {
                "values": {name: value for name, value in parsed.items() if value != parser.get_default(name)}
            }
        except RefusedError as error:
            answer = {"refused": str(error)}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
