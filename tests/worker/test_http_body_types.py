"""Plain HTTP: what a request says about its body, and what follows from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from scripts.worker_process import Worker, running_http_worker

pytestmark = pytest.mark.anyio

TOO_MANY = b'{"text": "Hello", "sampling_params": {"n": 129}}'
HELLO = b'{"text": "Hello"}'
JSON, TEXT = b"Content-Type: application/json\r\n", b"Content-Type: text/plain\r\n"


@pytest.fixture(scope="module")
async def worker() -> AsyncIterator[Worker]:
    async with running_http_worker() as worker:
        yield worker


async def answer_to(worker: Worker, headers: bytes, body: bytes, length: bytes | None = None) -> tuple[int, bytes]:
    """The status and body of the answer to a POST with these headers and no others, unlike any library's."""
    reader, writer = await asyncio.open_connection(*worker.http_url.removeprefix("http://").split(":"))
    try:
        length = b"Content-Length: %d\r\n" % len(body) if length is None else length
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + length + headers + b"\r\n" + body)
        head, _, answer = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]), answer


@pytest.mark.parametrize(
    "headers",
    [JSON + TEXT, TEXT + JSON, b"", b"Content-Type:\r\n", TEXT + b"Connection: Content-Type\r\n"],
    ids=["json and text", "text and json", "none", "empty", "dropped on the way"],
)
async def test_limits_hold_for_every_body_that_the_engine_may_take_for_json(worker: Worker, headers: bytes) -> None:
    status, answer = await answer_to(worker, headers, TOO_MANY)
    assert (status, b"MAX_N" in answer) == (400, True)


async def test_type_that_the_client_left_out_is_not_made_up(worker: Worker) -> None:
    assert (await answer_to(worker, b"", HELLO))[0] == 200
    assert "content-type" not in (await worker.engine_requests())[-1]["headers"]


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        (b"Content-Encoding: Identity\r\n", 200),
        (b"Content-Encoding: identity, identity\r\n", 200),
        (b"Content-Encoding:\r\n", 200),
        (b"Content-Encoding: GZIP\r\n", 415),
        (b"Content-Encoding: identity, br\r\n", 415),
        (b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\n", 415),
    ],
)
async def test_only_bodies_that_are_not_compressed_are_accepted(worker: Worker, codings: bytes, status: int) -> None:
    assert (await answer_to(worker, JSON + codings, HELLO))[0] == status


@pytest.mark.parametrize(("codings", "status"), [(b"Chunked", 200), (b"gzip, chunked", 415)])
async def test_bodies_on_their_way_are_in_chunks_and_nothing_else(worker: Worker, codings: bytes, status: int) -> None:
    chunked = b"Transfer-Encoding: %b\r\n\r\n%x\r\n%b\r\n0\r\n" % (codings, len(HELLO), HELLO)
    assert (await answer_to(worker, JSON + chunked, b"", length=b""))[0] == status
