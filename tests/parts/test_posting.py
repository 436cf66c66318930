"""Posts to the platform over real connections: what goes with them, as the SDK sends it, and what comes back."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from common.http1 import Timeouts
from common.tasks import cancel
from scripts.certificate import server_context
from serverless import posting, runpod
from serverless.platform import PlatformError
from serverless.posting import AddressError, Channel, Poster
from serverless.runpod import RunPodPlatform
from tests.parts.test_runpod_platform import Answer, Server, answer, connected, silence

pytestmark = pytest.mark.anyio

HEADERS = {"Authorization": "the-key", "Content-Type": "application/json", "User-Agent": "the-sdk"}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def posting_to(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Channel]:
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}/done/a%2Fb?gpu=x y&é=1"
    async with listener:
        with closing(Poster(HEADERS)) as poster:
            yield poster.channels(url, {"content-type": "text/plain", "X-Request-ID": "$ID"}).of("j")
    await cancel(*server.serving)


@pytest.mark.parametrize("streams", [False, True])
async def test_result_is_of_a_stream_where_the_handler_is_a_generator(
    monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    server = Server(answer(200), answer(200))
    async with connected(monkeypatch, server, streams=streams) as platform:
        await platform.post_result({"id": "j"}, {"output": 1})
        await platform.post_output({"id": "j"}, 1)
    assert server.requests == [
        f"POST /job-done/w/j?gpu=x&isStream={str(streams).lower()} HTTP/1.1",
        "POST /job-stream/w/j?gpu=x&isStream=false HTTP/1.1",
    ]
    assert len(server.serving) == 1  # one connection


async def test_post_has_the_sessions_headers_unless_it_has_its_own() -> None:
    server = Server(answer(200))
    async with posting_to(server) as channel:
        assert await channel.post(b"body") == 200
    [head] = server.heads
    line, *headers = head.strip().split("\r\n")
    assert line == "POST /done/a%2Fb?gpu=x%20y&%C3%A9=1 HTTP/1.1"
    assert sorted(header for header in headers if not header.startswith("Host: 127.0.0.1:")) == [
        "Accept: */*",
        "Authorization: the-key",
        "Content-Length: 4",
        "User-Agent: the-sdk",
        "X-Request-ID: j",
        "content-type: text/plain",
    ]
    assert server.bodies == [b"body"]


async def test_job_s_id_goes_where_it_belongs_and_nowhere_else() -> None:
    server = Server(answer(200))
    async with asyncio.timeout(10), await asyncio.start_server(server.accept, "127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/$ID/x?of=$ID"
        with closing(Poster({"Authorization": "a$IDb"})) as poster:
            assert await poster.channels(address, {"X-Request-ID": "$ID"}).of("j%2F1").post(b"") == 200
    await cancel(*server.serving)
    line, *headers = server.heads[0].strip().split("\r\n")
    assert line == "POST /j%2F1/x?of=j%2F1 HTTP/1.1"
    assert {"Authorization: a$IDb", "X-Request-ID: j%2F1"} <= set(headers)


async def test_platform_posts_with_the_credentials_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "worker-key")
    server = Server(answer(200))
    async with connected(monkeypatch, server) as platform:
        await platform.post_result({"id": "j"}, {"output": 1})
    headers = server.heads[0].split("\r\n")
    assert {"Authorization: worker-key", "charset: utf-8", "X-Request-ID: j"} <= set(headers)
    assert [header for header in headers if header.lower().startswith("content-type:")] == [
        "Content-Type: application/x-www-form-urlencoded"
    ]


async def test_posts_at_the_same_time_have_a_connection_each_which_the_next_ones_use() -> None:
    everyone_is_here, arrived = asyncio.Event(), 0

    async def when_all_are_here(writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 5:
            everyone_is_here.set()
        await everyone_is_here.wait()
        await answer(200, b"{}")(writer)

    server = Server(*[when_all_are_here] * 5, *[answer(200, b"{}")] * 5)
    async with posting_to(server) as channel:
        assert await asyncio.gather(*(channel.post(b"x") for _ in range(5))) == [200] * 5
        for _ in range(5):
            assert await channel.post(b"x") == 200
    assert len(server.serving) == 5


async def nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    raise ConnectionError


async def hang_up(_: asyncio.StreamWriter) -> None:
    raise ConnectionError


@pytest.mark.parametrize("given", [nonsense, hang_up, silence, answer(200, b"half", cut=True)])
async def test_post_without_a_proper_answer_can_be_tried_again(monkeypatch: pytest.MonkeyPatch, given: Answer) -> None:
    quick = Timeouts(connect=5.0, read=0.3, write=5.0, pool=5.0)
    monkeypatch.setattr(posting, "_TIMEOUTS", quick)
    server = Server(given, answer(200))
    async with connected(monkeypatch, server) as platform:
        with pytest.raises(PlatformError, match="no answer") as raised:
            await platform.post_result({"id": "a"}, {"output": 5})
        assert not raised.value.is_final
        await platform.post_result({"id": "a"}, {"output": 5})
    assert server.bodies == [b'{"output":5}'] * 2


async def test_large_answer_is_not_read_and_its_connection_is_not_kept() -> None:
    server = Server(answer(200, bytes(50_000_000)), answer(413, b"{}"))
    async with posting_to(server) as channel:
        assert await channel.post(b"x") == 200
        assert await channel.post(b"x") == 413
    assert len(server.serving) == 2


async def test_large_post_that_is_not_read_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "POST_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener, closing(Poster({})) as poster:
        channel = poster.channels(f"http://127.0.0.1:{listener.getsockname()[1]}/", {}).of("j")
        with pytest.raises(TimeoutError):
            await channel.post(bytes(64_000_000))


async def test_tls_certificate_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context, certificate = server_context(tmp_path)
    server = Server(answer(200), answer(200))
    async with posting_to(server, context) as channel:
        with pytest.raises(httpx.ConnectError):
            await channel.post(b"secret")
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with posting_to(server, context) as channel:
        assert [await channel.post(b"x"), await channel.post(b"y")] == [200, 200]
    assert server.bodies == [b"x", b"y"]


@pytest.mark.parametrize(
    "url", ["JOB_DONE_URL", "", "ftp://example.com/x", "http://", "http://[::1", "http://example.com:port/"]
)
async def test_address_that_is_not_one_is_an_error_that_says_so(url: str) -> None:
    with closing(Poster(HEADERS)) as poster, pytest.raises(AddressError, match="URL"):
        poster.channels(url, {})


async def test_key_with_a_line_break_is_not_sent() -> None:
    with closing(Poster({"Authorization": "key\n"})) as poster:
        poster.channels("http://example.com/", {})  # at its end, where a shell leaves one, it is cut off
    broken = pytest.raises(AddressError, match=r"^the header Authorization has a line break in it$")
    with closing(Poster({"Authorization": "key\r\nX-Evil: 1"})) as poster, broken:
        poster.channels("http://example.com/", {})


async def test_platform_without_an_address_is_an_error_of_the_post(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "JOB_DONE_URL", "JOB_DONE_URL")
    async with RunPodPlatform.connect() as platform:
        with pytest.raises(PlatformError, match="not an http or https URL"):
            await platform.post_result({"id": "a"}, {"output": 5})
