"""An engine that behaves, or misbehaves, on cue: `python -m sglang.launch_server` where it is first on PYTHONPATH.

How it starts is scripted by the variable SCRIPTED_ENGINE, a JSON object, or an array of them for one start after the
other (the last one counts for all that follow; each start adds a line to the file SCRIPTED_ENGINE_STARTS):
    ready_after: seconds of 503 on /health before it is warm (default 0)
    ready_when: a file; it is warm as soon as that is there
    says: text to print on standard error
    exit_code, exit_after: exit with that code, after that many seconds
    ignore_sigterm: true to survive SIGTERM
    child: true to leave a child process in the group
    strays: true for children that leave it: in sessions of their own, without parents, without an environment
    scheduler_hangs: as SGLang's, whose server gives up on /health_generate after that many seconds, with 503
    vocabulary: how many token ids it has, told as SGLang does when it is asked for log probabilities of others
    scheduler: true for a child that calls itself as SGLang's scheduler does
    answers: a JSON object from paths to what a request there is answered, whatever it says
    loads: an object whose fields replace those of /v1/loads (null removes one); or a status to answer there instead

It runs `--max-running-requests` requests at once, as long as `--max-total-tokens` has room for the `tokens` of each
(default 100); others wait for their turn, and it says so on /v1/loads, as SGLang does.

How it answers is scripted by the field `script` of a request's body:
    first: a script that counts in its place in one of the engine's lives; life: in which (default 1)
    status, body, content_type: answer this, as it is, with the header Allow if there is an `allow`
    answer: a JSON value to answer; by default the request is echoed
    drip: seconds before each byte of an unstreamed answer's body
    pause: seconds before each event (default 0), or before an unstreamed answer
    events: how many events to stream (default 3), `text` in each (default "word ")
    chunks: the events to stream in their place, as JSON values
    chunk_bytes: write the stream in pieces of this many bytes, whatever they cut
    message: what an error in the stream says
    then: how the stream ends: "done" (default), "eof", "drop", "half", "error", "abort", "hang", "crash",
        "drop_after_done", "anthropic_error", "message_stop"

`GET /requests` tells its command line, when it got warm, what it has been asked, how each request ended, how many it
had at once at most and how many of those were waiting, how often it has been asked for its health since it got warm and
for its load, the token that it has for downloads, and its strays' process ids.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTS = Path(os.environ.get("SCRIPTED_ENGINE_STARTS", os.devnull))
requests: list[dict[str, Any]] = []
strays: list[int] = []
warm_at: float | None = None  # seconds since the epoch
at_once = most_at_once = most_waiting = 0
probes = loads_asked = 0


class DropError(Exception):
    """Scripted: close the connection without a word."""


def option(flag: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


SLOTS = int(option("--max-running-requests", "4096"))
TOKENS = int(option("--max-total-tokens", "16777216"))
running: list[int] = []  # the tokens of each request that runs
waiting: list[tuple[int, asyncio.Event]] = []


def scripted_start() -> dict[str, Any]:
    script = json.loads(os.environ.get("SCRIPTED_ENGINE", "{}"))
    with STARTS.open("a") as file:
        print(time.time(), file=file)
    if isinstance(script, list):
        return script[min(starts(), len(script)) - 1]
    return script


def starts() -> int:
    return len(STARTS.read_text().splitlines())


START = scripted_start()

METRICS = b"""\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="scripted"} 3.0
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{version="3.11"} 1.0
"""


def start_child(name: str) -> None:
    """A child that nobody reaps, as SGLang's parent does only now and then."""
    subprocess.Popen([name, "-c", "import time; time.sleep(600)"], executable=sys.executable)


SLEEP = "import time; time.sleep(600)"
ORPHAN = f"import os, subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=2).pid)"


def start_strays() -> None:
    """Children outside the group and the session: still with their parent, and without one."""
    for environment in (None, {}):
        child = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True, env=environment)
        parent = subprocess.run(
            [sys.executable, "-c", ORPHAN], start_new_session=True, env=environment, stdout=subprocess.PIPE
        )
        strays.extend([child.pid, int(parent.stdout)])


async def main() -> None:
    for name in ("child", "scheduler"):
        if START.get(name):
            start_child("sglang::scheduler_TP0" if name == "scheduler" else sys.executable)
    if START.get("strays"):
        start_strays()
    sys.stderr.write(START.get("says", ""))
    if START.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "exit_code" in START:
        await asyncio.sleep(START.get("exit_after", 0))
        os._exit(START["exit_code"])
    server = await asyncio.start_server(serve, option("--host"), int(option("--port")))
    warming = asyncio.create_task(get_warm())
    async with server:
        await server.serve_forever()
    await warming


async def get_warm() -> None:
    global warm_at
    await asyncio.sleep(START.get("ready_after", 0))
    while not Path(START.get("ready_when", "/")).exists():
        await asyncio.sleep(0.01)
    warm_at = time.time()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            request_line, *header_lines = head.decode("latin-1").split("\r\n")
            method, path, _ = request_line.split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in header_lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await respond(method, path, headers, json.loads(body or "null"), reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, DropError):
        pass
    finally:
        writer.close()


async def respond(
    method: str,
    path: str,
    headers: dict[str, str],
    body: Any,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    global probes, at_once, most_at_once
    if path == "/health":
        probes += bool(warm_at)
        return await send(writer, 200 if warm_at else 503, "text/plain", b"")
    if path == "/health_generate":
        await asyncio.sleep(START.get("scheduler_hangs", 0))
        return await send(writer, 503 if "scheduler_hangs" in START else 200, "text/plain", b"")
    if path.startswith("/v1/loads"):
        return await send_loads(writer)
    if path == "/metrics" and "--enable-metrics" in sys.argv:
        return await send(writer, 200, "text/plain; version=0.0.4", METRICS)
    if path == "/requests":
        return await send(writer, 200, "application/json", told())
    if START.get("vocabulary") and isinstance(body, dict) and "token_ids_logprob" in body:
        requests.append({"method": method, "path": path, "headers": headers, "body": body, "end": "answered"})
        refusal = {"error": {"message": f"out-of-vocabulary; valid range is [0, {START['vocabulary']})."}}
        return await send(writer, 400, "application/json", json.dumps(refusal).encode())
    seen = {"method": method, "path": path, "headers": headers, "body": body, "end": "running"}
    requests.append(seen)
    script = body.get("script", {}) if isinstance(body, dict) else {}
    if "first" in script and starts() == script.get("life", 1):
        script = script["first"]
    at_once += 1
    most_at_once = max(most_at_once, at_once)
    answering = asyncio.create_task(answer_in_turn(path, body, script, writer))
    closed = asyncio.create_task(reader.read(1))  # the worker sends nothing more until it has its answer
    await asyncio.wait({answering, closed}, return_when=asyncio.FIRST_COMPLETED)
    gone = not answering.done() or isinstance(answering.exception(), ConnectionError)
    answering.cancel()
    closed.cancel()
    await asyncio.gather(answering, closed, return_exceptions=True)
    at_once -= 1
    seen["end"] = "aborted" if gone else "answered"
    if gone:
        raise ConnectionError
    answering.result()


def told() -> bytes:
    return json.dumps(
        {
            "argv": sys.argv,
            "warm_at": warm_at,
            "requests": requests,
            "probes": probes,
            "most_at_once": most_at_once,
            "most_waiting": most_waiting,
            "loads_asked": loads_asked,
            "strays": strays,
            "hf_token": os.environ.get("HF_TOKEN"),
        }
    ).encode()


async def send_loads(writer: asyncio.StreamWriter) -> None:
    global loads_asked
    loads_asked += 1
    used = sum(running)
    load = {
        "timestamp": time.time(),
        "dp_rank": 0,
        "num_running_reqs": len(running),
        "num_waiting_reqs": len(waiting),
        "num_used_tokens": used,
        "max_total_num_tokens": TOKENS,
        "max_running_requests": SLOTS,
        "token_usage": round(used / TOKENS, 4),
    }
    other = START.get("loads", {})
    if isinstance(other, int):
        return await send(writer, other, "application/json", b"{}")
    load = {name: value for name, value in (load | other).items() if value is not None}
    await send(writer, 200, "application/json", json.dumps({"loads": [load]}).encode())


async def answer_in_turn(path: str, body: Any, script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Answer once there is a slot and room in the KV cache, first come, first served."""
    global most_waiting
    tokens = script.get("tokens", 100)
    turn = asyncio.Event()
    waiting.append((tokens, turn))
    try:
        admit()
        most_waiting = max(most_waiting, len(waiting))
        await turn.wait()
        await answer(path, body, script, writer)
    finally:
        if turn.is_set():
            running.remove(tokens)
        else:
            waiting.remove((tokens, turn))
        admit()


def admit() -> None:
    while waiting and len(running) < SLOTS and (not running or sum(running) + waiting[0][0] <= TOKENS):
        tokens, turn = waiting.pop(0)
        running.append(tokens)
        turn.set()


async def answer(path: str, body: Any, script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    if "status" in script or "content_type" in script:
        kind = script.get("content_type", "application/json")
        allow = f"allow: {script['allow']}\r\n" if "allow" in script else ""
        return await send(writer, script.get("status", 200), kind, script.get("body", "").encode(), more=allow)
    if not (isinstance(body, dict) and body.get("stream")):
        await asyncio.sleep(script.get("pause", 0))
        if script.get("then") == "crash":
            os._exit(script.get("code", 1))
        value = script.get("answer", START.get("answers", {}).get(path, {"path": path, "echo": body}))
        body = json.dumps(value, ensure_ascii=False).encode()
        return await send(writer, 200, "application/json", body, script.get("drip", 0))
    await stream(script, writer)


def sse(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
LAST_WORDS = {
    "done": DONE,
    "drop_after_done": DONE,
    "half": b'data: {"choices": [{"delta": {"con',
    "abort": sse({"choices": [{"delta": {}, "finish_reason": "abort"}]}) + DONE,
    "message_stop": b"event: message_stop\n" + sse({"type": "message_stop"}),
    "anthropic_error": b"event: error\n"
    + sse({"type": "error", "error": {"type": "overloaded_error", "message": "data: none left"}}),
}


async def stream(script: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    word = {"choices": [{"delta": {"content": script.get("text", "word ")}}]}
    for chunk in script.get("chunks") or [{"index": index, **word} for index in range(script.get("events", 3))]:
        await asyncio.sleep(script.get("pause", 0))
        await write(writer, script, sse(chunk))
    then = script.get("then", "done")
    error = {"message": script.get("message", "scripted error"), "type": "BadRequest", "code": 400}
    await write(writer, script, sse({"error": error}) + DONE if then == "error" else LAST_WORDS.get(then, b""))
    match then:
        case "drop" | "drop_after_done":
            raise DropError
        case "hang":
            await asyncio.sleep(3600)
        case "crash":
            os._exit(script.get("code", 1))
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def write(writer: asyncio.StreamWriter, script: dict[str, Any], data: bytes) -> None:
    size = script.get("chunk_bytes", len(data) or 1)
    for begin in range(0, len(data), size):
        piece = data[begin : begin + size]
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
        if size < len(data):
            await asyncio.sleep(0.001)  # so that each piece is a separate read


async def send(
    writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, drip: float = 0, more: str = ""
) -> None:
    head = f"HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode()
    for piece in (head, *(body[at : at + 1] for at in range(len(body)))) if drip else (head + body,):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(drip)


if __name__ == "__main__":
    asyncio.run(main())
