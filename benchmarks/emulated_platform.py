"""RunPod's side of the queue protocol, with a network round trip, and a stopwatch on every job."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lean_http import Exchange, serve


@dataclass
class Job:
    """One job. Times are `time.monotonic()` seconds; `events` counts the server-sent events in its outputs."""

    id: str
    input: Any
    submitted_at: float = field(default_factory=time.monotonic)
    first_at: float = 0.0
    events: int = 0
    outputs: int = 0
    receipts: list[tuple[float, bytes]] = field(default_factory=list)
    """When each post of an output had arrived, and its body: before any of the round trip that is added here."""
    error: str | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    over_at: float = 0.0

    @property
    def first_seconds(self) -> float:
        """From its submission to its first event."""
        return self.first_at - self.submitted_at


class EmulatedPlatform:
    """Hands out jobs and takes results. Each call is answered `round_trip` seconds late, as over a network.

    A long poll is answered half a round trip after there is a job, and an output counts half a round trip after it was
    sent.
    """

    def __init__(self, round_trip: float, tls: ssl.SSLContext | None = None) -> None:
        """tls: serves https with it."""
        self.round_trip = round_trip
        self._tls = tls
        self.jobs: dict[str, Job] = {}
        self.first_take_at: float | None = None
        self._waiting: deque[Job] = deque()
        self._polls: deque[tuple[Exchange, int]] = deque()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; returns the URL."""
        self._server = await serve(self._respond, tls=self._tls)
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def submit(self, job_input: Any) -> Job:
        """Queue a job."""
        job = Job(str(len(self.jobs)), job_input)
        self.jobs[job.id] = job
        self._waiting.append(job)
        self._hand_out()
        return job

    def _respond(self, exchange: Exchange) -> None:
        path, _, query = exchange.path.partition("?")
        _, _, _, channel, *ids = path.split("/")
        if channel == "job-take" or channel == "job-take-batch":
            if self.first_take_at is None:
                self.first_take_at = time.monotonic()
            most = int(query.partition("batch_size=")[2].partition("&")[0] or 1)
            self._later(self._poll, exchange, most)
        elif channel == "job-stream":
            self.jobs[ids[1]].receipts.append((time.monotonic(), exchange.body))
            self._later(self._output, exchange, ids[1])
        elif channel == "job-done":
            self._later(self._done, exchange, ids[1])
        elif channel == "ping":
            exchange.answer(200, b"{}")
        # A poll for stop signals gets no answer: nothing is stopped here.

    def _later(self, call: Any, *arguments: Any) -> None:
        """Call it half a round trip from now: one way for a request, or for an answer."""
        if self.round_trip:
            asyncio.get_running_loop().call_later(self.round_trip / 2, call, *arguments)
        else:
            call(*arguments)

    def _answer(self, exchange: Exchange, body: bytes) -> None:
        self._later(exchange.answer, 200, body)

    def _poll(self, exchange: Exchange, most: int) -> None:
        self._polls.append((exchange, most))
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._polls:
            exchange, most = self._polls.popleft()
            if exchange.transport.is_closing():
                continue
            jobs = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            answers = [{"id": job.id, "input": job.input} for job in jobs]
            self._answer(exchange, json.dumps(answers if "batch" in exchange.path else answers[0]).encode())

    def _output(self, exchange: Exchange, job_id: str) -> None:
        job = self.jobs[job_id]
        job.outputs += 1
        job.events += exchange.body.count(b"data: ")
        job.first_at = job.first_at or time.monotonic()
        self._answer(exchange, b"{}")

    def _done(self, exchange: Exchange, job_id: str) -> None:
        job = self.jobs[job_id]
        if b'"error"' in exchange.body[:20]:
            job.error = exchange.body.decode()
        job.over_at = time.monotonic()
        job.over.set()
        self._answer(exchange, b"{}")
