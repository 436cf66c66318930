"""Checking a job's input against a schema: the schema and the words of RunPod's SDK, with rules that always hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

# As RunPod's and WaveSpeed's SDKs say it (runpod 1.12.0, rp_validator.py; wavespeed 1.0.14, validator.py).
_UNEXPECTED = "Unexpected input. {} is not a valid input option."
_MISSING = "{} is a required input."
_NO_DEFAULT = "Schema error, missing default value for {}."
_NO_TYPE = "Schema error, missing type for {}."
_NO_RULES = "Schema error, {} is not a dictionary."
_WRONG_TYPE = "{} should be {} type, not {}."
_CONSTRAINTS = "{} does not meet the constraints."


def validate(raw_input: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Check an input against a schema; neither is changed.

    Returns `{"validated_input": {…}}`, with defaults for what is absent and integers as floats where the type is float,
    or `{"errors": [text, …]}` with every problem at once.

    schema: for each name a dict, or one as JSON text, with
      type: what `isinstance` takes. The text of JSON can name none, so such a field is always of the wrong type.
      required: whether it must be there; a field without this counts as missing. If it need not, it has a
      default: its value where it is absent. None, given or by default, means "no value": it is not checked.
      constraints: a function of the value that says whether it is allowed. One that raises says no.

    Type and constraints hold for every value, also where there is a default; WaveSpeed's validator does that too.
    RunPod's own skips both for a field that has a default and a value of the default's type: there `{"temperature":
    5.0}` passes `{"default": 1.0, "constraints": lambda t: 0 <= t <= 2}`, and here it is an error.

    Raises TypeError for a schema that is not a mapping, or whose rules for a field are neither a dict nor JSON text.
    """
    if not isinstance(schema, Mapping):
        raise TypeError(f"the schema must be a dict of each input's rules, not {type(schema).__name__}")
    if not isinstance(raw_input, Mapping):
        return {"errors": [f"The input should be an object, not {type(raw_input).__name__}."]}
    errors = [_UNEXPECTED.format(name) for name in raw_input if name not in schema]
    rules: dict[str, dict[str, Any]] = {}
    for name, given in schema.items():
        if (parsed := _rules_of(name, given)) is None:
            errors.append(_NO_RULES.format(name))
        else:
            rules[name] = parsed
    values = dict(raw_input)
    for name, rule in rules.items():
        errors += _completed(name, rule, values)
    for name, rule in rules.items():
        if name in values and "type" in rule and not (values[name] is None and _may_be_none(rule)):
            errors += _checked(name, rule, values)
    return {"errors": errors} if errors else {"validated_input": values}


def _rules_of(name: str, given: Any) -> dict[str, Any] | None:
    """The rules of a field; None for text that is not a JSON object."""
    if isinstance(given, str | bytes):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
        return given if isinstance(given, dict) else None
    if not isinstance(given, dict):
        raise TypeError(f"the rules of {name!r} must be a dict, or one as JSON text, not {type(given).__name__}")
    return given


def _completed(name: str, rule: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Set the default of a field that is absent; returns what is missing in the input or in the schema."""
    errors = [] if "type" in rule else [_NO_TYPE.format(name)]
    if "required" not in rule or (rule["required"] and name not in values):
        errors.append(_MISSING.format(name))
    elif name not in values:
        if "default" in rule:
            values[name] = copy.deepcopy(rule["default"])  # a job may change it, and the next must not see that
        else:
            errors.append(_NO_DEFAULT.format(name))
    return errors


def _may_be_none(rule: dict[str, Any]) -> bool:
    return not rule.get("required") and rule.get("default", ...) is None


def _checked(name: str, rule: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Check a value's type and constraints; returns what is wrong with it."""
    kind = rule["type"]
    if kind is float and type(values[name]) is int:
        try:
            values[name] = float(values[name])
        except OverflowError:
            return [_CONSTRAINTS.format(name)]
    errors = [] if _is_of(values[name], kind) else [_WRONG_TYPE.format(name, kind, type(values[name]))]
    constraints = rule.get("constraints")
    if constraints is not None and not _is_allowed(values[name], constraints, has_failed=bool(errors)):
        errors.append(_CONSTRAINTS.format(name))
    return errors


def _is_of(value: Any, kind: Any) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # not a type, such as the text of one
        return False


def _is_allowed(value: Any, constraints: Any, *, has_failed: bool) -> bool:
    """Ask the constraints. Those that raise at a value of the wrong type say nothing that its type did not."""
    try:
        return bool(constraints(value))
    except Exception:
        return has_failed
