"""`serverless.validate`: the schema and words of RunPod's SDK, with rules that hold for every value."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from serverless import validate

TEMPERATURE = {"type": float, "required": False, "default": 1.0, "constraints": lambda value: 0 <= value <= 2}
SEED = {"type": int, "required": False, "default": None, "constraints": lambda value: value > 0}
PROMPT = {"type": str, "required": True, "constraints": lambda value: len(value) <= 5}
COUNT = {"type": int, "required": True}

# Schema, input, and what it becomes.
VALID: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"n": COUNT}, {"n": 42}, {"n": 42}),
    ({"t": TEMPERATURE}, {}, {"t": 1.0}),
    ({"t": TEMPERATURE}, {"t": 2}, {"t": 2.0}),
    ({"s": SEED}, {}, {"s": None}),
    ({"s": SEED}, {"s": None}, {"s": None}),
    ({"s": SEED}, {"s": 7}, {"s": 7}),
    ({"p": PROMPT, "t": TEMPERATURE}, {"p": "hello"}, {"p": "hello", "t": 1.0}),
    ({"n": {"type": (int, str), "required": True}}, {"n": "x"}, {"n": "x"}),
    ({"o": {"type": dict, "required": True}}, {"o": {"inner": 1}}, {"o": {"inner": 1}}),
    ({"y": {"type": int, "required": True, "default": 5}}, {"y": 20}, {"y": 20}),
]
# Schema, input, and every problem.
INVALID: list[tuple[dict[str, Any], Any, list[str]]] = [
    ({"t": TEMPERATURE}, {"t": 5.0}, ["t does not meet the constraints."]),
    ({"t": TEMPERATURE}, {"t": "1"}, ["t should be <class 'float'> type, not <class 'str'>."]),
    ({"t": TEMPERATURE}, {"t": None}, ["t should be <class 'float'> type, not <class 'NoneType'>."]),
    ({"s": SEED}, {"s": -1}, ["s does not meet the constraints."]),
    ({"n": COUNT}, {"n": "42"}, ["n should be <class 'int'> type, not <class 'str'>."]),
    ({"n": COUNT}, {}, ["n is a required input."]),
    ({"p": PROMPT}, {}, ["p is a required input."]),
    ({"p": PROMPT}, {"p": "too long"}, ["p does not meet the constraints."]),
    ({"p": PROMPT}, {"p": 5}, ["p should be <class 'str'> type, not <class 'int'>."]),
    (
        {"n": {"type": int, "required": True, "constraints": lambda value: value in (1, 2)}},
        {"n": "x"},
        ["n should be <class 'int'> type, not <class 'str'>.", "n does not meet the constraints."],
    ),
    (
        {"n": {"type": int, "required": False, "default": 500, "constraints": lambda value: value <= 100}},
        {},
        ["n does not meet the constraints."],
    ),
    (
        {"n": {"type": int, "required": True, "constraints": lambda value: 1 / 0}},
        {"n": 1},
        ["n does not meet the constraints."],
    ),
    ({"n": {"type": float, "required": True}}, {"n": 10**400}, ["n does not meet the constraints."]),
    ({"n": {"required": True}}, {"n": 1}, ["Schema error, missing type for n."]),
    ({"n": {"type": int}}, {"n": 1}, ["n is a required input."]),
    ({"n": {"type": int, "required": False}}, {}, ["Schema error, missing default value for n."]),
    ({"n": {"inner": COUNT}}, {"n": {"inner": 1}}, ["Schema error, missing type for n.", "n is a required input."]),
    ({"n": "not a dict"}, {"n": 1}, ["Schema error, n is not a dictionary."]),
    ({"n": "5"}, {"n": 1}, ["Schema error, n is not a dictionary."]),
    (
        {"n": '{"type": "str", "required": true}'},
        {"n": "x"},
        ["n should be str type, not <class 'str'>."],
    ),
    (
        {"a": COUNT, "b": COUNT},
        {"c": 1, "d": 2},
        [
            "Unexpected input. c is not a valid input option.",
            "Unexpected input. d is not a valid input option.",
            "a is a required input.",
            "b is a required input.",
        ],
    ),
    ({"n": COUNT}, "text", ["The input should be an object, not str."]),
    ({"n": COUNT}, None, ["The input should be an object, not NoneType."]),
]


@pytest.mark.parametrize(("schema", "raw_input", "validated"), VALID)
def test_valid_input(schema: dict[str, Any], raw_input: dict[str, Any], validated: dict[str, Any]) -> None:
    before = copy.copy(raw_input)
    assert validate(raw_input, schema) == {"validated_input": validated}
    assert raw_input == before
    assert all(
        type(validated[name]) is type(value) for name, value in validate(raw_input, schema)["validated_input"].items()
    )


@pytest.mark.parametrize(("schema", "raw_input", "errors"), INVALID)
def test_invalid_input(schema: dict[str, Any], raw_input: Any, errors: list[str]) -> None:
    before = dict(schema)
    assert validate(raw_input, schema) == {"errors": errors}
    assert schema == before


@pytest.mark.parametrize(
    "schema", [json.dumps({"n": {"type": "int"}}), None, [COUNT], {"n": 5}, {"n": None}, {"n": int}]
)
def test_schema_of_no_use_is_a_type_error_that_says_what_is_expected(schema: Any) -> None:
    with pytest.raises(TypeError, match="must be a dict"):
        validate({"n": 1}, schema)


def test_a_default_is_nobody_else_s_to_change() -> None:
    schema = {"stop": {"type": list, "required": False, "default": []}}
    validate({}, schema)["validated_input"]["stop"].append("x")
    assert validate({}, schema) == {"validated_input": {"stop": []}}
