"""A worker that greets: a function of a job, with a checked input."""

from __future__ import annotations

from typing import Any

import serverless

SCHEMA = {
    "name": {"type": str, "required": True, "constraints": lambda name: 0 < len(name) <= 100},
    "times": {"type": int, "required": False, "default": 1, "constraints": lambda times: 1 <= times <= 10},
}


def handler(job: dict[str, Any]) -> dict[str, Any]:
    """Greet whom the job names."""
    checked = serverless.validate(job["input"], SCHEMA)
    if "errors" in checked:
        return {"error": " ".join(checked["errors"])}
    asked = checked["validated_input"]
    return {"greeting": " ".join([f"Hello, {asked['name']}!"] * asked["times"])}


if __name__ == "__main__":
    serverless.start({"handler": handler})
