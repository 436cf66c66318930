"""The page to try it, in a headless Chromium, over API mode and the real SGLang on the tiny GLM.

`PAGE_PICTURES=docs scripts/test tests/engine/test_page.py` makes the pictures of the docs anew.
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

from embedded.conversations import WEATHER_IN_PARIS, WEATHER_IN_SEOUL, conversation
from tests.browser import PHONE, SECONDS, chromium, visiting
from tests.engine.conftest import Api

pytestmark = pytest.mark.anyio


@pytest.fixture
async def page(api: Api) -> AsyncIterator[Page]:
    async with chromium() as browser, visiting(browser, api.url, viewport={"width": 1120, "height": 860}) as page:
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
        re.compile(r"first token after \d+\.\d\d s · \d+ tokens( · \d+\.\d tokens/s)?$")  # no rate if all came at once
    )


async def test_thinking_off(page: Page) -> None:
    known = conversation("greeting_without_thinking")
    await page.uncheck("#thinking")
    await ask(page, known.messages[-1]["content"])
    await expect(page.locator("article.assistant .content")).to_have_text(known.content)
    await expect(page.locator("details.reasoning")).to_be_hidden()


async def test_tiny_model_introduces_itself_and_each_button_starts_a_fresh_chat(page: Page) -> None:
    introduction = page.get_by_role("region", name="About this model")
    await expect(introduction).to_contain_text("This is the tiny GLM")
    for name in ("greeting", "code", "tool_call", "number"):
        known = conversation(name)
        await page.fill("#system", "whatever")  # a starter brings the settings that it needs
        await introduction.get_by_role("button", name=known.messages[-1]["content"], exact=True).click()
        await expect(page.locator(".numbers")).not_to_be_empty()
        await expect(page.locator("article.user .text")).to_have_text(known.messages[-1]["content"])
        if known.content:
            await expect(page.locator(".content")).to_contain_text(known.content.split("\n")[0])
        else:
            await expect(page.locator("pre.call")).to_be_visible()


async def test_two_calls_in_one_turn_and_a_table(page: Page) -> None:
    await page.get_by_role("button", name="What is the weather in Seoul and Paris?").click()
    await expect(page.locator("pre.call")).to_have_count(2)
    for result in (WEATHER_IN_SEOUL, WEATHER_IN_PARIS):  # as the page proposes them
        await expect(page.locator("#prompt")).to_have_value(result)
        await page.press("#prompt", "Enter")
    await expect(page.locator("article.assistant table td")).to_have_text(
        ["Seoul", "21", "clear", "Paris", "14", "rain"]
    )
    if pictures := os.environ.get("PAGE_PICTURES"):
        await expect(page.locator("#send")).to_be_visible()
        await page.screenshot(path=f"{pictures}/page.png")


async def test_answer_with_code_is_read_on_a_phone(api: Api) -> None:
    phone = {"viewport": PHONE, "device_scale_factor": 2, "has_touch": True, "color_scheme": "dark"}
    async with chromium() as browser, visiting(browser, api.url, **phone) as page:
        await page.get_by_role("button", name="Show me a loop in Python.").tap()
        code = page.locator("article.assistant pre")
        await expect(code).to_have_text("for number in range(3):\n    print(number)\n")
        await expect(page.locator("#send")).to_be_visible()
        await expect(code).to_be_in_viewport(ratio=1)
        if pictures := os.environ.get("PAGE_PICTURES"):
            await page.screenshot(path=f"{pictures}/page-phone.png")


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
