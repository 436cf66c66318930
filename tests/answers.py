"""What jobs are answered, taken apart."""

from __future__ import annotations

import json
from typing import Any

from local_runpod import Job, JobState
from scripts.worker_process import REPOSITORY


def error_of(job: Job) -> dict[str, Any]:
    """The error object of a failed job, checked for its shape."""
    assert job.state is JobState.FAILED, job
    assert job.error is not None
    payload = json.loads(job.error)
    assert list(payload) == ["error"]
    assert set(payload["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in job.error
    assert str(REPOSITORY) not in job.error
    error: dict[str, Any] = payload["error"]
    return error


def events_of(outputs: list[Any]) -> list[Any]:
    """The data of every event in streamed outputs, parsed; `[DONE]` as it is. Every output must hold whole events."""
    events = []
    for output in outputs:
        assert isinstance(output, str)
        assert output.endswith("\n\n")
        for event in output.removesuffix("\n\n").split("\n\n"):
            assert event.startswith("data: "), event
            data = event.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


def text_of(events: list[Any]) -> str:
    """The streamed text of a chat: all content deltas, joined."""
    choices = [event["choices"][0] for event in events if isinstance(event, dict) and event.get("choices")]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
