"""Local mode: one job from the command line or a file, its whole answer as JSON on standard output."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scripts.worker_process import start_worker
from tests.answers import events_of, text_of

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "Hello, 21 °C 👋"}]}


async def run(*arguments: str, folder: Path, **more: Any) -> tuple[int, str, str]:
    """Exit code, standard output and log of one run."""
    worker = await start_worker(None, arguments=arguments, folder=folder, stdout=subprocess.PIPE, **more)
    try:
        output, _ = await asyncio.wait_for(worker.process.communicate(), 30)
    finally:
        with suppress(ProcessLookupError):
            worker.process.kill()
    return worker.process.returncode or 0, output.decode(), worker.log


async def test_unstreamed_answer(tmp_path: Path) -> None:
    code, output, _ = await run("--test_input", json.dumps({"input": CHAT}), folder=tmp_path)
    assert "°C 👋" in output
    report = json.loads(output)
    assert (code, report["status"], report["id"]) == (0, "COMPLETED", "local_test")
    assert report["output"][0]["echo"]["messages"] == CHAT["messages"]


async def test_streamed_answer_with_its_events(tmp_path: Path) -> None:
    code, output, _ = await run("--test_input", json.dumps({"input": {**CHAT, "stream": True}}), folder=tmp_path)
    report = json.loads(output)
    assert (code, report["status"]) == (0, "COMPLETED")
    events = events_of(report["output"])
    assert (text_of(events), events[-1]) == ("word word word ", "[DONE]")


async def test_job_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text(json.dumps({"id": "mine", "input": CHAT}))
    code, output, _ = await run(folder=tmp_path)
    assert (code, json.loads(output)["id"]) == (0, "mine")


@pytest.mark.parametrize(
    ("script", "message"),
    [({"status": 400, "body": '{"detail": "no"}'}, "no"), ({"then": "eof"}, "the engine's stream ended before")],
)
async def test_failed_job_exits_with_1_and_the_error(tmp_path: Path, script: dict[str, Any], message: str) -> None:
    job = {"input": {**CHAT, "stream": True, "script": script}}
    code, output, _ = await run("--test_input", json.dumps(job), folder=tmp_path)
    report = json.loads(output)
    assert (code, report["status"]) == (1, "FAILED")
    assert json.loads(report["error"])["error"]["message"].startswith(message)


async def test_engine_that_does_not_start_exits_with_1_and_the_error(tmp_path: Path) -> None:
    code, output, log = await run("--test_input", json.dumps({"input": CHAT}), folder=tmp_path, engine={"exit_code": 2})
    assert code == 1
    assert "while starting, the engine exited with code 2" in json.loads(output)["error"]
    assert "while starting, the engine exited with code 2" in log


async def test_bad_input_is_refused_before_the_engine_starts(tmp_path: Path) -> None:
    code, output, log = await run("--test_input", '{"input": {"a": 1}}', folder=tmp_path, engine={"exit_code": 2})
    assert code == 1
    assert "no request in 'input'" in json.loads(output)["error"]
    assert "engine" not in log


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "no job: give one with --test_input or in test_input.json"),
        (("--test_input", "{"), "--test_input is not valid JSON"),
        (("--test_input", '{"messages": []}'), 'must be an object with an "input"'),
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
    ],
)
async def test_bad_command_line_exits_with_2_and_one_line(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    code, output, log = await run(*arguments, folder=tmp_path)
    assert (code, output) == (2, "")
    assert complaint in log.splitlines()[-1]
    assert "Traceback" not in log
