"""RunPod's protocol over real connections: answers that drip, break off, redirect, or are not what they should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from common.tasks import cancel
from serverless import runpod
from serverless.platform import PlatformError
from serverless.runpod import RunPodPlatform

pytestmark = pytest.mark.anyio

JOBS = [{"id": "a", "input": {"text": "hello"}}, {"id": "b", "input": {}}]
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with the next of `answers`; keeps the request lines and bodies."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.heads: list[str] = []
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = next(
                    (line[16:] for line in head.split("\r\n") if line.lower().startswith("content-length: ")), "0"
                )
                self.heads.append(head)
                self.requests.append(head.split("\r\n")[0])
                self.bodies.append(await reader.readexactly(int(length)))
                await self.answers.pop(0)(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answer(status: int, body: bytes = b"", *, headers: str = "", pause: float = 0.0, cut: bool = False) -> Answer:
    """A response whose body comes in two halves, with a pause between; `cut` leaves the second out."""

    async def write(writer: asyncio.StreamWriter) -> None:
        half = len(body) // 2
        writer.write(f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body[:half])
        await writer.drain()
        await asyncio.sleep(pause)
        if cut:
            raise ConnectionError
        writer.write(body[half:])
        await writer.drain()

    return write


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def connected(
    monkeypatch: pytest.MonkeyPatch, server: Server, *, streams: bool = True
) -> AsyncIterator[RunPodPlatform]:
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    monkeypatch.setattr(runpod, "_job_get_url", lambda most: f"{base}/job-take-batch/w?batch_size={most}")
    monkeypatch.setattr(runpod, "_job_stop_url", lambda: f"{base}/job-stop/w?gpu=x")
    monkeypatch.setattr(runpod, "JOB_DONE_URL", f"{base}/job-done/w/$ID?gpu=x")
    monkeypatch.setattr(runpod, "JOB_STREAM_URL", f"{base}/job-stream/w/$ID?gpu=x")
    async with listener, RunPodPlatform.connect(streams=streams) as platform:
        yield platform
    await cancel(*server.serving)


async def test_body_that_comes_late_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "LONG_POLL_SECONDS", 0.1)
    server = Server(answer(200, json.dumps(JOBS).encode(), pause=0.5))
    async with connected(monkeypatch, server) as platform:
        assert await platform.take(5) == JOBS


async def test_jobs_that_are_being_handed_over_are_not_lost_to_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(answer(200, json.dumps(JOBS).encode(), pause=0.5))
    async with connected(monkeypatch, server) as platform:
        taking = asyncio.create_task(platform.take(5))
        while not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the head is there
        taking.cancel()
        assert await taking == JOBS


async def test_poll_without_an_answer_finds_nothing_and_a_body_without_an_end_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runpod, "LONG_POLL_SECONDS", 0.1)
    async with connected(monkeypatch, Server(silence)) as platform:
        assert await platform.take(5) == []
    monkeypatch.setattr(runpod, "BODY_SECONDS", 0.1)
    async with connected(monkeypatch, Server(answer(200, b"[{}]", pause=60))) as platform:
        with pytest.raises(PlatformError, match="broke off"):
            await platform.take(5)


@pytest.mark.parametrize("body", [b"", b" ", b"null", b"{}", b"[]"])
async def test_answers_without_jobs(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    async with connected(monkeypatch, Server(answer(200, body))) as platform:
        assert await platform.take(5) == []


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (answer(302, headers="location: /elsewhere\r\n"), 302),
        (answer(500), 500),
        (answer(429), 429),
        (answer(200, b"not JSON"), None),
        (answer(200, json.dumps(JOBS).encode(), cut=True), None),
    ],
)
async def test_take_that_fails(monkeypatch: pytest.MonkeyPatch, given: Answer, status: int | None) -> None:
    server = Server(given)
    async with connected(monkeypatch, server) as platform:
        with pytest.raises(PlatformError) as raised:
            await platform.take(5)
    assert (raised.value.status, len(server.requests)) == (status, 1)


BOMB = b'{"jobsToStop": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("given", "job_ids"),
    [
        (answer(200, b'{"jobsToStop": ["a", 5, null]}', headers="content-type: application/json\r\n"), ["a"]),
        (answer(200, b'{"jobsToStop": ["a"]}', headers="content-type: text/plain; charset=martian\r\n"), ["a"]),
        (answer(200, b'{"jobsToStop": "a"}'), []),
        (answer(200, b"[5]"), []),
        (answer(200, BOMB), []),
        (answer(204), []),
        (answer(404), None),
    ],
    ids=["mixed", "odd charset", "text", "array", "bomb", "none", "no channel"],
)
async def test_stop_signals(monkeypatch: pytest.MonkeyPatch, given: Answer, job_ids: list[str] | None) -> None:
    async with connected(monkeypatch, Server(given)) as platform:
        assert await platform.stopped_jobs() == job_ids


@pytest.mark.parametrize("job_id", ["a#b", "a?b", "../../x", "a b", "ö", "a%2fb", "a\r\nX-Evil: 1", "a/../../b"])
async def test_id_does_not_change_where_a_result_goes(monkeypatch: pytest.MonkeyPatch, job_id: str) -> None:
    server = Server(answer(200))
    async with connected(monkeypatch, server) as platform:
        await platform.post_result({"id": job_id}, {"output": 5})
    [request] = server.requests
    path = request.split(" ")[1].partition("?")[0]
    assert path.startswith("/job-done/w/")
    assert path.count("/") == 3
    assert server.bodies == [b'{"output":5}']


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_of_a_result_is_not_followed_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    server = Server(answer(status, headers="location: /elsewhere\r\n"), answer(200))
    async with connected(monkeypatch, server) as platform:
        with pytest.raises(PlatformError) as raised:
            await platform.post_result({"id": "a"}, {"output": 5})
    assert (raised.value.status, raised.value.is_final) == (status, False)
    assert len(server.requests) == 1
