"""The table against SGLang itself: it is up to date, and the two agree on what is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded.environment import engine_environment
from sglang_engine import options
from sglang_engine.options import Kind, Option, Type

REPOSITORY = Path(__file__).parents[2]
BASE = ["--model-path", "a/b"]
TABLE = options.load()

Parse = Callable[[list[str]], dict[str, Any]]


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    """What SGLang makes of launch arguments: `{"values": …}` or `{"refused": …}`."""
    process = subprocess.Popen(
        python("-m", "tests.engine.real_parser"),
        cwd=REPOSITORY,
        env=engine_environment(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    questions, answers = process.stdin, process.stdout
    while answers.readline().strip() != "ready":
        assert process.poll() is None, "SGLang's parser did not start"

    def parse(words: list[str]) -> dict[str, Any]:
        print(json.dumps([*BASE, *words]), file=questions, flush=True)
        answer: dict[str, Any] = json.loads(answers.readline())
        return answer

    with process:
        yield parse
        process.kill()


def test_table_and_page_are_up_to_date() -> None:
    run = subprocess.run(
        python("-m", "scripts.update_options", "--check"),
        cwd=REPOSITORY,
        env=engine_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"run scripts/update-options:\n{run.stdout}\n{run.stderr[-2000:]}"


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
plain_words = st.text("abcxyz019_./:", min_size=1, max_size=12)
VALUES: dict[Type, st.SearchStrategy[str]] = {
    Type.TEXT: texts,
    Type.INTEGER: st.integers(-(10**12), 10**12).map(str),
    Type.NUMBER: st.floats(allow_nan=False).map(repr),
    Type.SIZE: st.integers(-(10**9), 10**9).map(str)
    | st.builds("{}{}".format, st.integers(0, 9999), st.sampled_from(["k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]))
    | st.builds("{}.{}{}".format, st.integers(0, 99), st.integers(0, 99), st.sampled_from("kMGT")),
    Type.BOOLEAN: st.sampled_from([*options.TRUE, *options.FALSE]),
    Type.ANY: st.recursive(
        st.booleans() | st.integers() | texts, lambda v: st.lists(v) | st.dictionaries(texts, v)
    ).map(json.dumps),
    Type.ARRAY: st.lists(st.integers() | texts).map(json.dumps),
    # The one option of this type takes known phases with known keys; their form is SGLang's to check.
    Type.OBJECT: st.sampled_from(["{}", '{"decode": {"backend": "full"}}', '{"prefill": {}}']),
}


def valid_values(option: Option) -> st.SearchStrategy[str]:
    one = st.sampled_from(option.choices) if option.choices else VALUES[option.type]
    if option.kind is Kind.LIST:
        each = one if option.choices or option.type is not Type.TEXT else plain_words
        each = each.filter(lambda word: not word.startswith("-") or word[1:].isdigit())
        return st.lists(each, min_size=0 if option.may_be_empty else 1, max_size=4).map(json.dumps)
    return one


@pytest.mark.parametrize("option", TABLE, ids=lambda option: option.name)
@settings(max_examples=6)
@given(data=st.data())
def test_sglang_takes_what_the_table_takes(parse: Parse, option: Option, data: st.DataObject) -> None:
    value = data.draw(valid_values(option))
    for name in (option.name, *option.aliases):
        words = option.arguments(value, name)
        answer = parse(words)
        assert "refused" not in answer, (words, answer)


WRONG: dict[Type, list[str]] = {
    Type.INTEGER: ["x", "1.5", "", "1k"],
    Type.NUMBER: ["x", "1,5", ""],
    Type.SIZE: ["x", "1.5Ki", "1K", "k", ""],
    Type.ANY: ["{", "x", ""],
    Type.ARRAY: ["[", "x", ""],
    Type.OBJECT: ["{", "[]", "x", ""],
}


# What SGLang takes for text, and reads as JSON only later, is left out.
@pytest.mark.parametrize(
    "option", [o for o in TABLE if o.flag not in options.OBJECTS_AS_TEXT], ids=lambda option: option.name
)
def test_table_refuses_what_sglang_refuses(parse: Parse, option: Option) -> None:
    wrong = ["neither-this-nor-that"] if option.choices else WRONG.get(option.type, [])
    if option.type is Type.BOOLEAN:
        wrong = ["2", "y", "tru"]  # SGLang's flags take no value at all
    for value in wrong:
        refused = parse([option.flag, value] if value else [f"{option.flag}="])
        assert "refused" in refused, (option.flag, value)
        with pytest.raises(ValueError, match=r"\w"):
            option.arguments(value)
