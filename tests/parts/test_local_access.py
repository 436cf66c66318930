"""Who may call the local API, what it takes, and where its webhooks may lead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response

from common.settings import ConfigurationError
from common.web_server import serving
from local_runpod import Access, JobQueue, JobState, Webhooks, create_app
from local_runpod import webhooks as webhooks_module
from serverless.settings import WorkerSettings

pytestmark = pytest.mark.anyio

SECONDS = 20.0
EVIL = "http://evil.example"
LOOPBACK = Access(listens_on="127.0.0.1")
EVERYWHERE = Access(listens_on="0.0.0.0")
JOB = '{"input": 1}'


def client_of(access: Access, base_url: str = "http://127.0.0.1:8000", **more: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(access=access, long_poll_seconds=0.01, **more))
    return httpx.AsyncClient(transport=transport, base_url=base_url)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.0.0.2", "api.localhost"])
async def test_loopback_is_served_under_its_own_names(host: str) -> None:
    async with client_of(LOOPBACK) as client:
        assert (await client.get("/health", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "192.168.1.5:8000", "127.0.0.1.evil.example", "glm", ""])
@pytest.mark.parametrize("path", ["/health", "/openai/v1/models", "/v2/local/job-take/w1", "/", "/docs"])
async def test_loopback_is_not_served_under_other_names(host: str, path: str) -> None:
    """A page at evil.example can have that name lead to 127.0.0.1, and then call it as its own server."""
    async with client_of(LOOPBACK) as client:
        assert (await client.get(path, headers={"Host": host})).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("10.0.0.7:8000", 200),
        ("[fd00::7]:8000", 200),
        ("worker:8000", 200),
        ("localhost:8000", 200),
        ("glm.default.svc.cluster.local", 200),
        ("evil.example:8000", 403),
        ("chat.example", 200),
    ],
)
async def test_names_that_a_page_can_have_are_not_served_without_a_key(host: str, status: int) -> None:
    access = Access(listens_on="0.0.0.0", origins=frozenset({"https://chat.example"}))
    async with client_of(access) as client:
        assert (await client.get("/health", headers={"Host": host})).status_code == status
    async with client_of(Access(key="secret", listens_on="0.0.0.0")) as client:
        headers = {"Host": host, "Authorization": "Bearer secret"}
        assert (await client.get("/health", headers=headers)).status_code == 200


@pytest.mark.parametrize("access", [LOOPBACK, EVERYWHERE], ids=["loopback", "everywhere"])
@pytest.mark.parametrize("path", ["/run", "/openai/v1/chat/completions", "/purge-queue", "/v2/local/job-done/w/x"])
@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:3000", "https://127.0.0.1"])
async def test_other_pages_may_not_post(access: Access, path: str, origin: str) -> None:
    queue = JobQueue()
    async with client_of(access, queue=queue) as client:
        headers = {"Origin": origin, "Content-Type": "application/json"}
        answer = await client.post(path, content=JOB, headers=headers)
    assert answer.status_code == 403
    assert "CORS_ORIGINS" in answer.text
    assert queue.jobs == {}


async def test_other_pages_may_not_get_without_saying_who_they_are() -> None:
    """An image's address, or a link: a browser sends no Origin with it, but says where it comes from."""
    async with client_of(LOOPBACK) as client:
        for site in ("cross-site", "same-site"):
            image = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
            link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
            assert (await client.get("/v2/local/job-take/w1", headers=image)).status_code == 403
            assert (await client.get("/v2/local/job-take/w1", headers=link)).status_code == 403
            assert (await client.get("/", headers=link)).status_code == 200


async def test_the_api_s_own_page_may_call_it() -> None:
    async with client_of(LOOPBACK) as client:
        own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
        assert (await client.post("/run", json={"input": 1}, headers=own)).status_code == 200


async def test_cors_origins_admit_pages_and_answer_their_browsers() -> None:
    access = Access(listens_on="127.0.0.1", origins=frozenset({"https://chat.example"}))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with client_of(access) as client:
        welcome = {"Origin": "https://chat.example"}
        preflight = await client.options("/openai/v1/chat/completions", headers=welcome | asks)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
            200,
            "https://chat.example",
        )
        answer = await client.post("/run", json={"input": 1}, headers=welcome)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        assert (await client.post("/run", json={"input": 1}, headers={"Origin": EVIL})).status_code == 403
        assert (await client.options("/run", headers={"Origin": EVIL} | asks)).status_code == 400
    async with client_of(Access(listens_on="127.0.0.1", origins=frozenset({"*"}))) as client:
        assert (await client.post("/run", json={"input": 1}, headers={"Origin": EVIL})).status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None, "x/y"]
)
@pytest.mark.parametrize("path", ["/run", "/runsync", "/openai/v1/chat/completions", "/openai/v1/messages"])
async def test_body_that_does_not_say_that_it_is_json_is_refused(path: str, content_type: str | None) -> None:
    async with client_of(LOOPBACK) as client:
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await client.post(path, content=JOB, headers=headers)
    assert answer.status_code == 415
    assert "-H 'Content-Type: application/json'" in answer.text


async def test_json_with_a_charset_is_taken_and_so_is_an_empty_post() -> None:
    async with client_of(LOOPBACK) as client:
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        job_id = (await client.post("/run", content=JOB, headers=headers)).json()["id"]
        assert (await client.post(f"/cancel/{job_id}")).status_code == 200
        assert (await client.post("/purge-queue")).status_code == 200


@pytest.mark.parametrize("shown", ["Bearer clé", "bearer clé", "BEARER  clé", "clé"])
async def test_key_is_taken_in_each_form(shown: str) -> None:
    async with client_of(Access(key="clé")) as client:
        for encoding in ("utf-8", "latin-1"):
            headers = {b"Authorization": shown.encode(encoding)}
            assert (await client.get("/health", headers=headers)).status_code == 200


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ü", "Bearer cle", "Basic clé", "ключ"])
async def test_key_that_is_not_the_key_is_refused(shown: str) -> None:
    async with client_of(Access(key="clé")) as client:
        for path in ("/health", "/docs", "/openapi.json", "/openai/v1/models"):
            assert (await client.get(path, headers={b"Authorization": shown.encode()})).status_code == 401
        assert (await client.get("/")).status_code == 200


async def test_key_beyond_latin_1_is_taken_as_utf_8_alone() -> None:
    async with client_of(Access(key="ключ")) as client:
        for shown, status in ((b"Bearer ????", 401), (b"????", 401), ("Bearer ключ".encode(), 200)):
            assert (await client.get("/health", headers={b"Authorization": shown})).status_code == status


@pytest.mark.parametrize("shown", ["ключ", "é", "%FF", ""])
async def test_worker_s_key_that_is_not_ascii_is_refused(shown: str) -> None:
    async with client_of(LOOPBACK, worker_key="worker") as client:
        assert (await client.get("/v2/local/job-take/w1", params={"key": shown})).status_code == 401


async def test_errors_have_the_form_of_the_api_that_was_called() -> None:
    async with client_of(Access(key="secret")) as client:
        openai = (await client.post("/v2/local/openai/v1/chat/completions", json={})).json()["error"]
        assert set(openai) == {"message", "type", "param", "code"}
        assert (openai["type"], openai["code"]) == ("authentication_error", 401)
        anthropic = (await client.post("/openai/v1/messages", json={})).json()
        assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
        for path in ("/run", "/status/x", "/docs"):
            refused = await (client.post if path == "/run" else client.get)(path)
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        key = {"Authorization": "bearer secret"}
        bad = await client.post(
            "/openai/v1/chat/completions", content="{", headers=key | {"Content-Type": "application/json"}
        )
        assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error")
        bad = await client.post("/run", content="{", headers=key | {"Content-Type": "application/json"})
        assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error")
        for path in ("/status/unknown", "/nothing/here"):
            missing = await client.get(path, headers=key)
            assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        assert (await client.patch("/openai/v1/models", headers=key)).json()["error"]["code"] == 405


@pytest.fixture
async def queue() -> JobQueue:
    return JobQueue()


@pytest.mark.parametrize(
    ("method", "path", "content", "job_input"),
    [
        ("GET", "/v1/models", None, {"openai_route": "/v1/models"}),
        ("GET", "/v1/models?limit=5&a=%20", None, {"openai_route": "/v1/models", "openai_query": "limit=5&a=%20"}),
        (
            "POST",
            "/v1/responses/r/cancel",
            None,
            {"openai_route": "/v1/responses/r/cancel", "openai_input": {}, "openai_method": "POST"},
        ),
        ("POST", "/v1/x", "{}", {"openai_route": "/v1/x", "openai_input": {}, "openai_method": "POST"}),
        ("POST", "/v1/x", '{"a": 1}', {"openai_route": "/v1/x", "openai_input": {"a": 1}}),
        ("DELETE", "/v1/x", None, {"openai_route": "/v1/x", "openai_method": "DELETE"}),
        ("PUT", "/encode", '{"a": 1}', {"openai_route": "/encode", "openai_method": "PUT", "openai_input": {"a": 1}}),
    ],
)
async def test_method_and_query_of_a_call_reach_the_worker(
    queue: JobQueue, method: str, path: str, content: str | None, job_input: dict[str, Any]
) -> None:
    async with client_of(LOOPBACK, queue=queue) as client:
        headers = {"Content-Type": "application/json"} if content else {}
        asking = asyncio.create_task(client.request(method, f"/openai{path}", content=content, headers=headers))
        assert await queue.wait_for_job(SECONDS)
        [job] = queue.take("w1", 1)
        assert json.loads(job.input) == job_input
        queue.finish(job, output=[{"ok": True}], error=None)
        assert (await asking).json() == {"ok": True}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "no", "type": "NotFoundError", "param": "model", "code": "model_not_found"}, 404),
        ({"message": "no", "type": "invalid_request_error", "param": None, "code": "context_length_exceeded"}, 400),
        ({"message": "no", "type": "server_error", "param": None, "code": "odd"}, 500),
        ({"message": "no", "type": "server_error", "param": None, "code": 503}, 503),
    ],
)
async def test_error_s_own_code_is_kept(queue: JobQueue, error: dict[str, Any], status: int) -> None:
    async with client_of(LOOPBACK, queue=queue) as client:
        for path in ("/openai/v1/chat/completions", "/openai/v1/messages"):
            asking = asyncio.create_task(client.post(path, json={"a": 1}))
            assert await queue.wait_for_job(SECONDS)
            [job] = queue.take("w1", 1)
            queue.finish(job, output=None, error=json.dumps({"error": error}))
            answer = await asking
            assert answer.status_code == status
            assert answer.headers.get("retry-after") == ("5" if status == 503 else None)
            assert answer.json()["error"]["message"] == "no"
            if "messages" not in path:
                assert answer.json() == {"error": error}


PRIVATE = [
    "http://127.0.0.1/",
    "http://localhost:9/",
    "http://[::1]/",
    "http://10.1.2.3/",
    "http://169.254.169.254/latest/meta-data",
    "http://[::ffff:127.0.0.1]/",
    "http://[fe80::1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://0.0.0.0/",
    "http://2130706433/",
    "http://127.1/",
    "http://224.0.0.1/",
    "http://100.64.0.1/",
]


@pytest.mark.parametrize("url", PRIVATE)
async def test_webhook_to_a_private_address_is_refused_where_others_can_submit(queue: JobQueue, url: str) -> None:
    async with client_of(EVERYWHERE, queue=queue, webhooks=Webhooks(only_public=True)) as client:
        answer = await client.post("/run", json={"input": 1, "webhook": url})
        assert answer.status_code == 400
        assert queue.jobs == {}
    async with client_of(LOOPBACK, queue=queue, webhooks=Webhooks()) as client:
        assert (await client.post("/run", json={"input": 1, "webhook": url})).status_code == 200


async def test_webhook_to_a_public_address_is_taken_and_one_that_leads_nowhere_is_not() -> None:
    webhooks = Webhooks(only_public=True)
    async with client_of(EVERYWHERE, webhooks=webhooks) as client:
        for url, status in (
            ("https://1.1.1.1/hook", 200),
            ("https://[2606:4700::1111]/hook", 200),
            ("http://no-such-host.invalid/", 400),
            (f"http://{'a' * 300}.example/", 400),
            ("http://1.1.1.1:99999/", 400),
        ):
            answer = await client.post("/run", json={"input": 1, "webhook": url})
            assert (url, answer.status_code) == (url, status)
    await webhooks.close()


@pytest.mark.parametrize("only_public", [False, True])
async def test_hosts_that_are_named_are_the_only_ones_that_webhooks_lead_to(only_public: bool) -> None:
    webhooks = Webhooks(only_public=only_public, hosts={"Inside", "10.0.0.7", "::1"})
    async with client_of(EVERYWHERE, webhooks=webhooks) as client:
        for url, status in (
            ("http://inside:9/", 200),
            ("http://INSIDE./", 200),
            ("http://10.0.0.7:8080/", 200),
            ("http://[::1]/", 200),
            ("https://1.1.1.1/hook", 400),
            ("http://10.0.0.8/", 400),
            ("http://127.0.0.1/", 400),
            ("http://inside.example/", 400),
            ("http://inside@1.1.1.1/", 400),
        ):
            answer = await client.post("/run", json={"input": 1, "webhook": url})
            assert (url, answer.status_code) == (url, status)
            assert status == 200 or "WEBHOOK_HOSTS" in answer.text
    await webhooks.close()


@pytest.fixture
async def hook() -> AsyncIterator[tuple[int, list[str]]]:
    """A server that sends posts on to /elsewhere; its port, and the paths it has been asked for."""
    asked: list[str] = []
    app = FastAPI()

    @app.post("/{path}")
    async def take(path: str) -> Response:
        asked.append(path)
        return Response(status_code=307, headers={"Location": "/elsewhere"}) if path == "hook" else Response()

    async with serving(app, "127.0.0.1", 0) as port:
        yield port, asked


async def test_webhook_s_redirects_are_not_followed(queue: JobQueue, hook: tuple[int, list[str]]) -> None:
    port, asked = hook
    webhooks = Webhooks(pause_seconds=0)
    job = queue.submit(1)
    webhooks.announce(queue, job, f"http://127.0.0.1:{port}/hook")
    queue.cancel(job)
    await webhooks.close()
    assert asked == ["hook"] * 3


async def test_webhook_s_name_is_looked_at_again_for_each_post(
    queue: JobQueue, hook: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It led to a public address when the job was submitted, and leads to a private one when that is over."""
    port, asked = hook
    webhooks = Webhooks(pause_seconds=0, only_public=True)
    with monkeypatch.context() as patched:
        patched.setattr(webhooks_module, "_is_public", lambda _: True)
        await webhooks.check(f"http://localhost:{port}/hook")
    job = queue.submit(1)
    webhooks.announce(queue, job, f"http://localhost:{port}/hook")
    queue.cancel(job)
    await webhooks.close()
    assert asked == []


async def test_job_is_kept_until_its_webhook_has_been_told(queue: JobQueue) -> None:
    job = queue.submit(1)
    with queue.kept(job):
        queue.take("w1", 1)
        queue.finish(job, output="x", error=None, size_bytes=queue.limits.bytes)
        other = queue.submit(1)
        queue.cancel(other)
        assert job.id in queue.jobs
    queue.submit(1, size_bytes=1)
    assert job.id not in queue.jobs


async def test_stopping_server_says_which_webhooks_it_leaves(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    webhooks = Webhooks()
    webhooks.announce(queue, queue.submit(1), "http://127.0.0.1:9/")
    await webhooks.close()
    assert "1 webhooks were not called" in caplog.text
    assert queue.counts()[JobState.IN_QUEUE] == 1


def test_settings_of_access_are_read_and_checked() -> None:
    settings = WorkerSettings.from_environ(
        {"CORS_ORIGINS": "https://Chat.example/, http://localhost:3000", "WEBHOOK_HOSTS": "Inside, 10.0.0.7"}
    )
    assert settings.cors_origins == {"https://chat.example", "http://localhost:3000"}
    assert settings.webhook_hosts == {"inside", "10.0.0.7"}
    assert WorkerSettings.from_environ({"CORS_ORIGINS": "*"}).cors_origins == {"*"}
    for wrong in ({"CORS_ORIGINS": "chat.example"}, {"CORS_ORIGINS": "https://a/b"}, {"WEBHOOK_HOSTS": "http://a"}):
        with pytest.raises(ConfigurationError):
            WorkerSettings.from_environ(wrong)
