"""A served model, measured from its client's side: `scripts/bench --url URL`, for a GPU or an endpoint.

URL: an OpenAI-compatible server (`http://127.0.0.1:30000/v1`), this worker's API mode
(`http://127.0.0.1:8000/openai/v1`) or a RunPod endpoint (`https://api.runpod.ai/v2/ENDPOINT_ID`). Streams are started
together; each has its own prompt, so that no prefix cache helps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.tables import markdown, milliseconds, percentile_95

PROMPT = "Explain in detail how a steam locomotive works, from the fire to the wheels."
ACCEPT_LENGTH = re.compile(r"^sglang:spec_accept_length(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
SILENCE_SECONDS = 300.0  # a scaled-down endpoint starts a worker first

HEAD = ("streams", "first token, median", "p95", "tokens/s a stream, median", "tokens/s in all", "accept length")


class EndpointError(Exception):
    """The server did not answer like an OpenAI-compatible one; the text says what it did."""


@dataclass(frozen=True)
class Answer:
    """One stream: when its first and last tokens came, in seconds from its start, and how many there were."""

    first: float
    last: float
    tokens: int


@dataclass(frozen=True)
class Load:
    """The figures of one load, as `--json` writes them. Times in seconds; None: not known."""

    streams: int
    first_median: float
    first_p95: float
    tokens_a_second_a_stream: float | None
    tokens_a_second: float
    accept_length: float | None

    def row(self) -> tuple[str, ...]:
        """Its row of the table, under HEAD."""
        rate = self.tokens_a_second_a_stream
        return (
            str(self.streams),
            milliseconds(self.first_median),
            milliseconds(self.first_p95),
            "" if rate is None else f"{rate:.0f}",
            f"{self.tokens_a_second:,.0f}",
            f"{self.accept_length:.2f}" if self.accept_length else "",
        )


def main() -> int:
    """Measure and print a table. Returns 1 and prints one line if the server does not answer."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", help="default: the first one that the server lists")
    parser.add_argument("--streams", default="1,8,32", help="how many at once, one load after another: %(default)s")
    parser.add_argument("--tokens", type=int, default=256, help="the length of each answer: %(default)s")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument(
        "--key-from", default="RUNPOD_API_KEY", metavar="NAME", help="the variable of the key: %(default)s"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there too; scripts/plan reads them"
    )
    parser.add_argument("--plain", action="store_true", help="only OpenAI's fields: no `ignore_eos`")
    arguments = parser.parse_args()
    try:
        loads = asyncio.run(measure(arguments))
        print(markdown(HEAD, [load.row() for load in loads]))
        if arguments.json:
            figures = {"tokens": arguments.tokens, "loads": [asdict(load) for load in loads]}
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except EndpointError as error:
        print(f"{arguments.url}: {error}", file=sys.stderr)
        return 1
    return 0


async def measure(arguments: argparse.Namespace) -> list[Load]:
    """The figures of each load. Raises EndpointError."""
    key = os.environ.get(arguments.key_from)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None)
    base = base_url(arguments.url)
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=SILENCE_SECONDS, limits=limits) as client:
        try:
            model = arguments.model or await first_model(client)
            body = {"model": model, "max_tokens": arguments.tokens, "temperature": 0.0, "stream": True}
            body |= {"stream_options": {"include_usage": True}} | ({} if arguments.plain else {"ignore_eos": True})
            await answer(client, body | {"max_tokens": 8}, arguments.prompt)  # connections, and a worker's start
            loads = []
            for count in map(int, arguments.streams.split(",")):
                began = time.monotonic()
                answers = await asyncio.gather(*(answer(client, body, arguments.prompt) for _ in range(count)))
                loads.append(figures_of(answers, time.monotonic() - began, await accept_length(client)))
        except httpx.HTTPError as error:
            raise EndpointError(f"no answer ({type(error).__name__})") from error
    return loads


def base_url(url: str) -> str:
    """Where the server's OpenAI API is."""
    url = url.rstrip("/")
    if url.endswith("/v1"):
        return url
    return f"{url}/openai/v1" if re.search(r"/v2/[^/]+$", url) else f"{url}/v1"


async def first_model(client: httpx.AsyncClient) -> str:
    """The name of the first model that the server lists."""
    response = await client.get("/models")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise EndpointError(f"it lists no models (status {response.status_code}); name one with --model") from None


async def answer(client: httpx.AsyncClient, body: dict[str, Any], prompt: str) -> Answer:
    """One stream, to its end."""
    messages = [{"role": "user", "content": f"[{uuid.uuid4().hex}] {prompt}"}]
    began = time.monotonic()
    times: list[float] = []
    tokens = 0
    async with client.stream("POST", "/chat/completions", json=body | {"messages": messages}) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            raise EndpointError(f"status {response.status_code}: {text[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise EndpointError(f"an error in the stream: {json.dumps(event['error'])[:300]}")
            delta = event["choices"][0].get("delta", {}) if event.get("choices") else {}
            if any(delta.get(kind) for kind in ("content", "reasoning_content", "tool_calls")):
                times.append(time.monotonic() - began)
            tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
    if not times:
        raise EndpointError("a stream ended without a token")
    return Answer(times[0], times[-1], tokens or len(times))


async def accept_length(client: httpx.AsyncClient) -> float | None:
    """How many tokens a step of speculative decoding currently yields, from SGLang's metrics; None if it has none.

    It has them with ENABLE_METRICS, on its own port.
    """
    response = await client.get(str(client.base_url).removesuffix("/v1/") + "/metrics")
    found = ACCEPT_LENGTH.search(response.text) if response.status_code == 200 else None
    return float(found[1]) if found else None


def figures_of(answers: list[Answer], seconds: float, accepted: float | None) -> Load:
    """A load's figures, from its streams and from how long all of them took."""
    firsts = [answer.first for answer in answers]
    rates = [(answer.tokens - 1) / (answer.last - answer.first) for answer in answers if answer.last > answer.first]
    return Load(
        streams=len(answers),
        first_median=statistics.median(firsts),
        first_p95=percentile_95(firsts),
        tokens_a_second_a_stream=statistics.median(rates) if rates else None,
        tokens_a_second=sum(answer.tokens for answer in answers) / seconds,
        accept_length=accepted,
    )


if __name__ == "__main__":
    sys.exit(main())
