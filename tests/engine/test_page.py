"""The page to try it, in a headless Chromium, over API mode and the real SGLang on the tiny GLM.

`PAGE_PICTURE=docs/page.png scripts/test tests/engine/test_page.py` makes the README's picture anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import Page, Route, expect

from embedded.conversations import conversation
from tests.browser import SECONDS, chromium, visiting
from tests.engine.conftest import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def page(api: Api) -> AsyncIterator[Page]:
    async with chromium() as browser, visiting(browser, api.url, viewport={"width": 1120, "height": 640}) as page:
        await expect(page.locator("#model option")).to_have_text("glm-4.7-flash")
        yield page


async def ask(page: Page, text: str) -> None:
    await page.fill("#prompt", text)
    await page.press("#prompt", "Enter")
    await expect(page.locator("#send")).to_be_visible(timeout=30 * SECONDS)


async def test_answer_with_its_reasoning_folded_and_its_numbers(page: Page) -> None:
    known = conversation("greeting")
    await ask(page, known.messages[-1]["content"])
    await expect(page.locator("article.assistant .content")).to_have_text(known.content)
    reasoning = page.locator("details.reasoning")
    assert await reasoning.get_attribute("open") is None
    await expect(reasoning.locator(".text")).to_have_text(str(known.reasoning))
    await expect(page.locator(".numbers")).to_have_text(
        re.compile(r"first token after \d+\.\d\d s · \d+ tokens · \d+\.\d tokens/s")
    )


async def test_thinking_off(page: Page) -> None:
    known = conversation("greeting_without_thinking")
    await page.uncheck("#thinking")
    await ask(page, known.messages[-1]["content"])
    await expect(page.locator("article.assistant .content")).to_have_text(known.content)
    await expect(page.locator("details.reasoning")).to_be_hidden()


async def test_tool_call_and_its_result(page: Page) -> None:
    call, answer = conversation("tool_call"), conversation("tool_result")
    await page.check("#tools")
    await ask(page, call.messages[-1]["content"])
    await expect(page.locator("pre.call")).to_have_text('get_weather({"city": "Seoul"})')
    await expect(page.locator("#prompt")).to_have_value(answer.messages[-1]["content"])
    await ask(page, answer.messages[-1]["content"])
    await expect(page.locator("article.assistant .content").last).to_have_text(answer.content)
    if picture := os.environ.get("PAGE_PICTURE"):
        await page.locator("details.reasoning summary").first.click()
        await page.screenshot(path=picture)


async def test_error_is_shown_and_the_question_can_be_asked_again(page: Page) -> None:
    await page.fill("#temperature", "-1")
    await ask(page, "Hello")
    await expect(page.locator(".error")).to_contain_text("temperature must be a non-negative finite number")
    await page.fill("#temperature", "0")
    await ask(page, "Hello")
    await expect(page.locator("article.assistant .content").last).to_have_text(conversation("greeting").content)


async def test_stop_ends_the_job(page: Page, api: Api) -> None:
    async def without_an_end(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}") | {"ignore_eos": True, "max_tokens": 3000}
        await route.continue_(post_data=json.dumps(body))

    await page.route("**/chat/completions", without_an_end)
    await page.fill("#prompt", "Hello")
    await page.press("#prompt", "Enter")
    await expect(page.locator("article.assistant .content")).not_to_be_empty(timeout=30 * SECONDS)
    await page.click("#stop")
    await expect(page.locator(".note")).to_have_text("Stopped.")
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client, asyncio.timeout(10):
        while (await client.get("/health")).json()["jobs"]["inProgress"]:
            await asyncio.sleep(0.05)
