"""`python -m sglang.launch_server`: streams `max_tokens` events, one every `interval` seconds (default 0.01).

It is warm from the start, or as soon as the file PACED_ENGINE_READY_WHEN is there.

It runs `--max-running-requests` of them at once (default 4096), as long as `--max-total-tokens` (default 16 Mi) holds
the prompt, a token for four characters, and the answer of each. The others wait. /v1/loads says so as SGLang's does:
what is written there is written when requests begin, after every 15 events of the first one that runs, and when there
are none.

With `ticks`, all streams of one interval get an event at the same moment, as from the steps of a real engine. Each
event carries that moment as `sent`, in seconds of the machine's monotonic clock; the last one and `[DONE]` go together.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.lean_http import Exchange, serve
from sglang import STARTED_AT

DELTA = {"content": " word", "reasoning_content": None, "role": None, "tool_calls": None}
CHUNK = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1767225600}
CHOICE = {"index": 0, "delta": DELTA, "logprobs": None, "finish_reason": None, "matched_stop": None}
# What SGLang sends for one token, about 280 bytes.
PAYLOAD = CHUNK | {"model": "glm-4.7-flash", "choices": [CHOICE], "usage": None}
EVENT = b"data: " + json.dumps(PAYLOAD).encode() + b"\n\n"
TIMED_EVENT = b"data: " + json.dumps(PAYLOAD).encode()[:-1] + b', "sent": %.6f}\n\n'
STAMPED = EVENT[:-3] + b', "sent_at": %020.6f}\n\n'  # for bodies with `stamped`: seconds since the epoch
DONE = b"data: [DONE]\n\n"
CHARACTERS_A_TOKEN = 4
INTERVAL_SECONDS = 0.01
READY_WHEN = os.environ.get("PACED_ENGINE_READY_WHEN", "/")
STEPS_A_SNAPSHOT = 15  # SGLang's default, --load-snapshot-publish-interval


def option(flag: str, default: str) -> str:
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


@dataclass(eq=False)
class Request:
    """One request: what it asked for, and how many events it has been sent."""

    exchange: Exchange
    body: dict[str, Any]
    prompt_tokens: int
    sent: int = 0
    events: int = field(init=False)

    def __post_init__(self) -> None:
        self.events = self.body.get("max_tokens", 1) if self.body.get("stream") else 1

    @property
    def most_tokens(self) -> int:
        return self.prompt_tokens + self.events


class Engine:
    """What runs, what waits, and what was last written about it."""

    def __init__(self) -> None:
        self.slots = int(option("--max-running-requests", "4096"))
        self.tokens = int(option("--max-total-tokens", str(16 * 2**20)))
        self.running: dict[Request, None] = {}
        self.waiting: deque[Request] = deque()
        self.reserved = 0  # tokens that the running requests will have taken by their end
        self.tickers: dict[float, Ticker] = {}  # by their intervals
        self.write_snapshot()

    def respond(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/v1/loads"):
            return exchange.answer(200, json.dumps({"loads": [self.snapshot]}).encode())
        if exchange.path == "/health" and not os.path.exists(READY_WHEN):
            return exchange.answer(503)
        if exchange.method == "GET":
            return exchange.answer(200, json.dumps({"object": "list", "data": [], "started_at": STARTED_AT}).encode())
        self.waiting.append(Request(exchange, json.loads(exchange.body), len(exchange.body) // CHARACTERS_A_TOKEN))
        self.begin_next()
        return None

    def begin_next(self) -> None:
        begun = False
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting[0]
            if self.running and self.reserved + request.most_tokens > self.tokens:
                break
            self.waiting.popleft()
            if not request.exchange.transport.is_closing():
                self.begin(request)
                begun = True
        if begun or not self.running:
            self.write_snapshot()

    def begin(self, request: Request) -> None:
        self.running[request] = None
        self.reserved += request.most_tokens
        loop, interval = asyncio.get_running_loop(), request.body.get("interval", INTERVAL_SECONDS)
        began = loop.time()
        if not request.body.get("stream"):
            loop.call_later(interval, self.answer, request)
            return None
        request.exchange.begin_stream()
        if request.body.get("ticks"):
            if interval not in self.tickers:
                self.tickers[interval] = Ticker(self, interval)
            return self.tickers[interval].join(request)

        def send() -> None:
            if request.exchange.transport.is_closing():
                self.end(request)
            elif request.sent == request.events:
                request.exchange.write_event(DONE)
                request.exchange.write_event(b"")
                self.end(request)
            else:
                request.exchange.write_event(STAMPED % time.time() if request.body.get("stamped") else EVENT)
                request.sent += 1
                if request.sent % STEPS_A_SNAPSHOT == 0 and request is next(iter(self.running)):
                    self.write_snapshot()
                loop.call_at(began + request.sent * interval, send)

        send()
        return None

    def answer(self, request: Request) -> None:
        request.exchange.answer(200, b'{"choices": []}')
        self.end(request)

    def end(self, request: Request) -> None:
        del self.running[request]
        self.reserved -= request.most_tokens
        self.begin_next()

    def write_snapshot(self) -> None:
        used = sum(request.prompt_tokens + request.sent for request in self.running)
        self.snapshot = {
            "timestamp": time.time(),
            "dp_rank": 0,
            "num_running_reqs": len(self.running),
            "num_waiting_reqs": len(self.waiting),
            "num_used_tokens": used,
            "max_total_num_tokens": self.tokens,
            "max_running_requests": self.slots,
            "token_usage": round(used / self.tokens, 4),
        }


class Ticker:
    """Streams that get their events at the same moments, `interval` seconds apart."""

    def __init__(self, engine: Engine, interval: float) -> None:
        self.engine = engine
        self.interval = interval
        self.requests: dict[Request, None] = {}
        self.next_at = 0.0

    def join(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        if not self.requests:
            self.next_at = loop.time() + self.interval
            loop.call_at(self.next_at, self.tick)
        self.requests[request] = None

    def tick(self) -> None:
        event = TIMED_EVENT % time.monotonic()
        for request in list(self.requests):
            request.sent += 1
            is_last = request.sent == request.events
            request.exchange.write_event(event + DONE if is_last else event)
            if is_last:
                request.exchange.write_event(b"")
            if is_last or request.exchange.transport.is_closing():
                del self.requests[request]
                self.engine.end(request)
        self.engine.write_snapshot()
        if self.requests:
            self.next_at += self.interval
            asyncio.get_running_loop().call_at(self.next_at, self.tick)


async def main() -> None:
    host, port = option("--host", ""), option("--port", "")
    server = await serve(Engine().respond, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
