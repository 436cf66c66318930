"""sglang_options.json and sglang_defaults.json from SGLang's own classes, and docs/configuration.md from the first.

Run by scripts/update-options.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from sglang_engine.engine_lines import DEFAULTS_FILE
from sglang_engine.options import TABLE_FILE, Kind, Type, variable_name
from sglang_engine.ranges import RANGES

# SGLang's own argument types, by function name.
TYPES = {
    None: Type.TEXT,
    "str": Type.TEXT,
    "nullable_str": Type.TEXT,
    "parse_cuda_graph_backend_arg": Type.TEXT,
    "int": Type.INTEGER,
    "float": Type.NUMBER,
    "human_readable_int": Type.SIZE,
    "loads": Type.ANY,
    "json_list_type": Type.ARRAY,
    "parse_cuda_graph_config_arg": Type.OBJECT,
}


def main() -> int:
    """Write the files, or with `--check` compare them. Returns 1 if they differ."""
    parser = argparse.ArgumentParser(prog="scripts/update-options", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    check: bool = parser.parse_args().check
    same = [settle(TABLE_FILE, table_text(), check=check), settle(DEFAULTS_FILE, defaults_text(), check=check)]

    from scripts.configuration_docs import DOCUMENT, document  # reads the table, which must be up to date by now

    same.append(settle(DOCUMENT, document(), check=check))
    return 0 if all(same) else 1


def settle(path: Path, text: str, *, check: bool) -> bool:
    """Write this text to a file, or show how it differs. Returns whether nothing is left to do."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if before == text:
        return True
    if check:
        sys.stdout.writelines(difference(before, text, path.name))
        return False
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.name}")
    return True


def difference(before: str, after: str, name: str) -> list[str]:
    """A diff, for people."""
    return list(
        difflib.unified_diff(
            before.splitlines(keepends=True),
            after.splitlines(keepends=True),
            f"{name} as it is",
            f"{name} as it should be",
            n=0,
        )
    )


def table_text() -> str:
    """sglang_options.json for the installed SGLang: one option per line, so that a diff shows options."""
    import sglang

    rows = ",\n".join("  " + json.dumps(row) for row in rows_of(sglang_parser()))
    return f'{{"sglang": {json.dumps(sglang.__version__)},\n "options": [\n{rows}\n]}}\n'


def defaults_text() -> str:
    """sglang_defaults.json: SGLang's default for each of its arguments, as its log shows it."""
    import msgspec
    from sglang.srt.server_args import ServerArgs

    defaults = {
        field.name: repr(field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory())
        for field in msgspec.structs.fields(ServerArgs)
        if not field.required
    }
    return json.dumps(defaults, indent=1) + "\n"


def sglang_parser(parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The installed SGLang's own parser of its launch options."""
    from sglang.srt.server_args import ServerArgs

    parser = parser_class(prog="sglang.launch_server")
    ServerArgs.add_cli_args(parser)
    return parser


def rows_of(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """One row per option, in the parser's order. Names and facts only: the help texts are SGLang's."""
    actions = (action for action in parser._actions if action.option_strings and action.dest != "help")
    return [row_of(action) for action in actions]


def row_of(action: argparse.Action) -> dict[str, Any]:
    """One option's row. Raises KeyError as in `type_of`."""
    kind = kind_of(action)
    flag, *others = (flag for flag in action.option_strings if kind is not Kind.PAIR or not flag.startswith("--no-"))
    return {
        "name": variable_name(flag),
        "flag": flag,
        "kind": kind,
        "type": Type.BOOLEAN if kind in (Kind.FLAG, Kind.PAIR) else type_of(action),
        # Sorted: SGLang builds some of them from a set.
        "choices": None if action.choices is None else sorted(str(choice) for choice in action.choices),
        "aliases": [variable_name(other) for other in others],
        "may_be_empty": action.nargs == "*",
    } | ({"range": RANGES[flag].bounds()} if flag in RANGES else {})


def type_of(action: argparse.Action) -> Type:
    """The type of its value. Raises KeyError for an argument type that is not in TYPES: look at new ones by hand."""
    return TYPES[getattr(action.type, "__name__", None)]


def kind_of(action: argparse.Action) -> Kind:
    """How the option is written."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return Kind.PAIR
    if action.nargs == 0:
        return Kind.FLAG
    if action.nargs in ("+", "*"):
        return Kind.LIST
    if action.nargs == "?":
        return Kind.OPTIONAL
    if type_of(action) in (Type.ANY, Type.ARRAY, Type.OBJECT):
        return Kind.JSON
    return Kind.VALUE


if __name__ == "__main__":
    sys.exit(main())
