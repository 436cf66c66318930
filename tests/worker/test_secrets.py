"""No secret leaves the worker, in whatever form, cut, place or language it comes: log, errors, streams."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from gateway.errors import MAX_MESSAGE_CHARACTERS
from scripts.worker_process import ANSWER_SECONDS, Platform, Worker, running_platform, running_worker
from tests.answers import error_of

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
HUGGING_FACE = "hf_0123456789/+abcdef"
EXTRA_KEY = "sk-extra-arguments"
PING_KEY = "ping-0123456789"
FORMS = {
    "plain": HUGGING_FACE,
    "in a URL": quote(HUGGING_FACE, safe=""),
    "in Base64": base64.b64encode(f"user:{HUGGING_FACE}".encode()).decode(),
    "of the extra arguments": EXTRA_KEY,
    "of the platform's address": PING_KEY,
}
LEAKS = [
    HUGGING_FACE[:8],
    HUGGING_FACE[-8:],
    base64.b64encode(HUGGING_FACE[2:].encode()).decode()[:12],
    EXTRA_KEY,
    PING_KEY,
]
# A line whose token lies across the place where it was once cut.
LONG_LINE = "x" * (32 * 1024 - 8) + HUGGING_FACE + "y" * 100 + " the end of a long line\n"


@pytest.fixture(scope="module")
async def secretive() -> AsyncIterator[tuple[Platform, Worker]]:
    """A worker with secrets, whose engine prints them all, and its platform, which cannot be pinged."""
    says = LONG_LINE + "".join(f"<{form}>\n" for form in FORMS.values()) + "all said\n"
    environment = {
        "HF_TOKEN": HUGGING_FACE,
        "SGLANG_EXTRA_ARGS": f"--api-key={EXTRA_KEY}",
        "RUNPOD_WEBHOOK_PING": f"http://127.0.0.1:9/ping/$RUNPOD_POD_ID?gpu=none&key={PING_KEY}",
    }
    async with running_platform() as platform, running_worker(platform, environment, engine={"says": says}) as worker:
        yield platform, worker


def leaks_in(text: str) -> list[str]:
    return [leak for leak in LEAKS if leak in text]


async def test_engine_s_output_is_masked_in_every_form_and_on_long_lines(secretive: tuple[Platform, Worker]) -> None:
    log = secretive[1].log
    assert "xxx***yyy" in log
    assert "the end of a long line" in log
    assert "all said" in log
    assert leaks_in(log) == []


@pytest.mark.parametrize("form", FORMS)
async def test_all_fields_of_an_error_are_masked(secretive: tuple[Platform, Worker], form: str) -> None:
    platform, worker = secretive
    fields = dict.fromkeys(("message", "type", "param", "code"), f"no {FORMS[form]}")
    script = {"status": 400, "body": json.dumps({"error": fields})}
    job = await platform.answer({"messages": HELLO, "script": script})
    assert leaks_in(json.dumps(error_of(job))) == []
    assert "***" in error_of(job)["message"]
    assert leaks_in(worker.log) == []


async def test_error_s_message_is_masked_before_it_is_cut(secretive: tuple[Platform, Worker]) -> None:
    message = "x" * (MAX_MESSAGE_CHARACTERS - 10) + HUGGING_FACE + "y" * 100
    for script in (
        {"status": 400, "body": json.dumps({"error": {"message": message}})},
        {"then": "error", "message": message},
    ):
        stream = "then" in script
        job: Any = await secretive[0].answer({"messages": HELLO, "stream": stream, "script": script})
        assert error_of(job)["message"].startswith("xxx")
        assert leaks_in(str(job.stream) + str(job.error)) == []


async def test_address_that_the_sdk_s_heartbeat_complains_of_is_logged_without_its_key(
    secretive: tuple[Platform, Worker],
) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while "/ping/" not in secretive[1].log:  # its first warning comes at once, its error after some retries
            await asyncio.sleep(0.05)
    assert "key=***" in secretive[1].log
    assert leaks_in(secretive[1].log) == []
