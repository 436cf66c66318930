"""`python -m sglang.launch_server`: streams `max_tokens` events, one every `interval` seconds, as the body asks."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from benchmarks.lean_http import Exchange, serve
from sglang import STARTED_AT

DELTA = {"content": " word", "reasoning_content": None, "role": None, "tool_calls": None}
CHUNK = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1767225600}
CHOICE = {"index": 0, "delta": DELTA, "logprobs": None, "finish_reason": None, "matched_stop": None}
# What SGLang sends for one token, about 280 bytes.
EVENT = (
    b"data: " + json.dumps(CHUNK | {"model": "glm-4.7-flash", "choices": [CHOICE], "usage": None}).encode() + b"\n\n"
)
DONE = b"data: [DONE]\n\n"


def respond(exchange: Exchange) -> None:
    if exchange.method == "GET":
        return exchange.answer(200, json.dumps({"object": "list", "data": [], "started_at": STARTED_AT}).encode())
    body = json.loads(exchange.body)
    loop = asyncio.get_running_loop()
    if not body.get("stream"):
        loop.call_later(body["interval"], exchange.answer, 200, b'{"choices": []}')
        return None
    exchange.begin_stream()
    begin, interval, events = loop.time(), body["interval"], body["max_tokens"]

    def send(number: int) -> None:
        if number == events:
            exchange.write_event(DONE)
            exchange.write_event(b"")
        elif not exchange.transport.is_closing():
            exchange.write_event(EVENT)
            loop.call_at(begin + (number + 1) * interval, send, number + 1)

    send(0)
    return None


async def main() -> None:
    host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--host", "--port"))
    server = await serve(respond, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
