"""A headless Chromium for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 1000.0  # in milliseconds, as Playwright wants them
expect.set_options(timeout=20 * SECONDS)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 640}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def visiting(browser: Browser, url: str, **context: Any) -> AsyncIterator[Page]:
    """The page at this address, in a session of its own. Fails if the page raises, or asks another host for anything.

    context: what Playwright's `new_context` takes; by default the viewport is `DESKTOP`.
    """
    session = await browser.new_context(**{"viewport": DESKTOP, **context})
    session.set_default_timeout(20 * SECONDS)
    page = await session.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda asked: problems.append(asked.url) if is_elsewhere(asked.url, url) else None)
    await page.goto(url)
    yield page
    await session.close()
    assert problems == []


def is_elsewhere(asked: str, url: str) -> bool:
    return urlsplit(asked).netloc not in (urlsplit(url).netloc, "")  # "" in data: and blob:
