"""Three jobs in local mode, shown for reading. Run by scripts/demo, in the tiny GLM's environment."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedded.conversations import conversation
from scripts.worker_process import free_port

COMMAND = ".venv/bin/python -m embedded .venv/bin/python handler.py"
LOG = Path(".cache/demo.log")
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def main() -> int:
    """Run and show all three. Stops and returns 1 if one fails."""
    LOG.parent.mkdir(exist_ok=True)
    greeting, tool_call = conversation("greeting").request(), conversation("tool_call").request()
    fact = {"model": "glm-4.7-flash", **conversation("fact").request(), "stream": True}
    demonstrations: list[tuple[str, dict[str, Any]]] = [
        ("A chat, with its reasoning", {"input": greeting}),
        ("A tool call", {"input": tool_call}),
        ("A streamed answer", {"input": {"openai_route": "/v1/chat/completions", "openai_input": fact}}),
    ]
    print(f"{DIM}Each job starts a new worker, and SGLang with it: about half a minute each. The log: {LOG}{PLAIN}")
    return 0 if all(show(number, *demo) for number, demo in enumerate(demonstrations, start=1)) else 1


def show(number: int, title: str, job: dict[str, Any]) -> bool:
    """Run one job in local mode; print the question and the answer. Returns whether there was one."""
    text = json.dumps(job)
    print(f"\n{BOLD}{number}. {title}{PLAIN}")
    print(f"{DIM}$ {COMMAND} --test_input {shlex.quote(text)}{PLAIN}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "handler.py", "--test_input", text]
    environ = {"PORT": str(free_port()), **os.environ}  # a worker that runs already may have the default one
    with LOG.open("w") as log:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env=environ, check=False)
    if run.returncode != 0:
        print(f"failed, exit code {run.returncode}:\n{run.stdout.decode()}\n{LOG.read_text()[-4000:]}", file=sys.stderr)
        return False
    report = json.loads(run.stdout)
    request = job["input"].get("openai_input", job["input"])
    line("user", request["messages"][-1]["content"])
    if request.get("stream"):
        show_stream(report["output"])
    else:
        show_message(report["output"][0]["choices"][0]["message"])
    print(f"{DIM}  job {report['id']} {report['status']}, {time.monotonic() - began:.0f} s with the start{PLAIN}")
    return True


def show_message(message: dict[str, Any]) -> None:
    """An unstreamed answer: its reasoning, its text, its tool calls."""
    line("thinking", message.get("reasoning_content"))
    line("answer", message.get("content"))
    for call in message.get("tool_calls") or ():
        line("tool call", f"{call['function']['name']}({call['function']['arguments']})")


def show_stream(outputs: list[str]) -> None:
    """A streamed answer: the pieces of text, one per event, and how many outputs the events came in."""
    deltas = [choice["delta"] for event in events(outputs) for choice in event["choices"]]
    for label, key in (("thinking", "reasoning_content"), ("answer", "content")):
        line(label, "|".join(piece for delta in deltas if (piece := delta.get(key))))
    line("stream", f"{len(deltas)} events in {len(outputs)} outputs, then [DONE]; | marks where one event ends")


def events(outputs: list[str]) -> Iterator[dict[str, Any]]:
    """The parsed events of streamed outputs, without the last, `[DONE]`."""
    for event in "".join(outputs).removesuffix("\n\n").split("\n\n"):
        data = event.removeprefix("data: ")
        if data != "[DONE]":
            yield json.loads(data)


def line(label: str, text: str | None) -> None:
    """One labelled line; nothing for an empty text."""
    if text:
        print(f"  {BOLD}{label:>9}{PLAIN}  {text}")


if __name__ == "__main__":
    sys.exit(main())
