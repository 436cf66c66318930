"""The page to try it, in a headless Chromium, over API mode and the scripted engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, Route, expect

from common.web_server import serving
from local_runpod import Access, JobQueue, create_app
from scripts.worker_process import Worker, free_port, start_worker, until_api_is_ready
from tests.browser import DESKTOP, PHONE, chromium, visiting
from tests.waiting import ENOUGH_SECONDS, until

pytestmark = pytest.mark.anyio

MODEL = "glm-4.7-flash"
ENGINE: dict[str, Any] = {"answers": {"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]}}}
CALL = {"index": 0, "id": "call_1", "function": {"name": "get_weather", "arguments": '{"city": "Seoul"}'}}
OTHER_CALL = {"index": 1, "id": "call_2", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ENDLESS = {"events": 100_000, "pause": 0.01}
MARKDOWN = """\
A loop in **Python**:

```python
for number in range(3):
    print(number)  # <b>not bold</b>, in a line that is longer than the screen of any phone that I have ever seen
```

| city | degrees |
|---|---:|
| Seoul | 21 |

| city | temperature | sky | humidity | pressure |
|---|---|---|---|---|
| Rome | 17 | cloudy | 60 | 1013 |

[good](https://example.com/) [bad](javascript:alert(1)) ![picture](https://example.com/leak.png)
<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">
"""


def chunks(*deltas: dict[str, Any], finish: str = "stop", pause: float = 0) -> dict[str, Any]:
    """A script: one event for each delta, then the reason for the end, then the usage."""
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    ends = [{"choices": [{"delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": {"completion_tokens": 7}}]
    return {"chunks": [*events, *ends], "pause": pause}


def says(*pieces: str) -> dict[str, Any]:
    return chunks(*({"content": piece} for piece in pieces))


@dataclass
class Chat:
    """A page, and what the engine answers to its next questions."""

    page: Page
    scripts: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    async def listen(self) -> None:
        await self.page.route("**/chat/completions", self._add_script)

    async def _add_script(self, route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        self.sent.append(body)
        script = self.scripts.pop(0) if self.scripts else says("Fine.")
        await route.continue_(post_data=json.dumps({**body, "script": script}))

    async def write(self, text: str) -> None:
        await self.page.fill("#prompt", text)
        await self.page.press("#prompt", "Enter")

    async def ask(self, text: str, script: dict[str, Any] | None = None) -> None:
        """Ask, and wait for the end of the answer."""
        self.scripts += [script] if script else []
        await self.write(text)
        await self.over()

    async def over(self) -> None:
        await expect(self.page.locator("#send")).to_be_visible()

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator("article.user")


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@dataclass
class Api:
    worker: Worker
    url: str


@pytest.fixture(scope="module")
async def api() -> AsyncIterator[Api]:
    port = free_port()
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(None, arguments=flags, engine=ENGINE)
    url = f"http://127.0.0.1:{port}"
    try:
        await until_api_is_ready(url, worker)
        yield Api(worker, url)
    finally:
        await worker.stop()


@pytest.fixture
async def chat(api: Api, browser: Browser) -> AsyncIterator[Chat]:
    async with visiting(browser, api.url) as page:
        chat = Chat(page)
        await chat.listen()
        await expect(page.locator("#state")).to_have_text("Ready")
        yield chat


async def test_loading_is_told_and_a_question_waits_visibly_once_and_can_be_stopped(
    browser: Browser, tmp_path: Path
) -> None:
    port, ready = free_port(), tmp_path / "ready"
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    worker = await start_worker(
        None, arguments=flags, engine=ENGINE | {"ready_when": str(ready), "says": "Load weight begin\n"}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await until(lambda: "a page to try it" in worker.log, 30)
        async with visiting(browser, url, viewport=PHONE) as page:
            chat = Chat(page)
            await chat.listen()
            # The engine has begun to load its weights, but this model is not on the disk.
            await expect(page.locator("#state")).to_have_text(re.compile(r"Loading the model: download, [1-9]\d* s"))
            await expect(page.locator("#welcome")).to_contain_text("answered as soon as it is ready")
            assert await page.evaluate(CUT_OFF) == []
            await chat.write("first")
            await chat.write("second")
            await expect(chat.answers.locator(".waiting")).to_have_text(
                re.compile(r"Loading the model: download, \d+ s")
            )
            await expect(chat.questions).to_have_count(1)
            await expect(page.locator("#prompt")).to_have_value("second")
            await page.click("#stop")
            await expect(chat.answers.locator(".note")).to_have_text("Stopped.")
            await expect(page.locator("#send")).to_be_enabled()
            await chat.answers.get_by_role("button", name="Try again").click()
            await expect(chat.answers.locator(".waiting")).to_be_visible()
            ready.touch()
            await expect(chat.answers.locator(".content")).to_have_text("Fine.")
            await expect(page.locator("#state")).to_have_text("Ready")
        asked = [each for each in await worker.engine_requests() if each["path"] == "/v1/chat/completions"]
        assert [each["body"]["messages"] for each in asked] == [[{"role": "user", "content": "first"}]]
    finally:
        await worker.stop()


async def test_title_names_the_model_served(chat: Chat) -> None:
    await expect(chat.page).to_have_title(MODEL)
    await expect(chat.page.get_by_role("heading", level=1)).to_have_text(MODEL)


async def test_answer_has_its_thoughts_folded_and_its_numbers(chat: Chat) -> None:
    await chat.ask(
        "Hello", chunks({"reasoning_content": "A greeting."}, {"content": "\nHi"}, {"content": " you"}, pause=0.1)
    )
    await expect(chat.answers.locator(".content")).to_have_text("Hi you")
    thoughts = chat.answers.locator("details.reasoning")
    assert await thoughts.get_attribute("open") is None
    await expect(thoughts.locator(".text")).to_have_text("A greeting.")
    await expect(chat.answers.locator(".numbers")).to_have_text(
        re.compile(r"first token after \d+\.\d\d s · 7 tokens · \d+\.\d tokens/s")
    )


async def test_new_chat_while_an_answer_runs_starts_clean(chat: Chat, api: Api) -> None:
    chat.scripts = [ENDLESS]
    await chat.write("old")
    await expect(chat.answers.locator(".content")).to_contain_text("word")
    await chat.page.click("#clear")
    await expect(chat.page.locator("article")).to_have_count(0)
    await chat.ask("new")
    await expect(chat.answers.locator(".content")).to_have_text("Fine.")
    assert chat.sent[-1]["messages"] == [{"role": "user", "content": "new"}]
    await expect(chat.page.locator("article")).to_have_count(2)
    await until_aborted(api, "old")


async def test_history_is_sent_with_the_next_question(chat: Chat) -> None:
    await chat.ask("one", says("1"))
    await chat.ask("two")
    assert chat.sent[-1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]


async def test_view_follows_question_and_answer_until_the_reader_scrolls_up(chat: Chat) -> None:
    lines = [f"line {number}\n\n" for number in range(120)]
    log = chat.page.locator("#log")
    await chat.ask("long", says(*lines))
    await expect(chat.answers.locator(".content p").last).to_be_in_viewport()
    await log.evaluate("log => { log.scrollTop = 0; }")
    await expect(chat.page.locator("#latest")).to_be_visible()
    chat.scripts = [chunks(*({"content": line} for line in lines), pause=0.03)]
    await chat.write("longer")
    await expect(chat.questions.last).to_be_in_viewport()
    await expect(chat.answers.last).to_contain_text("line 40")
    assert await log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") < 40
    # A browser that is busy tells of the scrolling only after the next piece of the answer has been drawn.
    busy = "const end = performance.now() + 100; while (performance.now() < end) ;"
    await log.evaluate(f"log => {{ log.scrollTop -= 20; {busy} }}")
    await chat.over()
    await expect(chat.answers.last).to_contain_text("line 119")
    assert await log.evaluate("log => log.scrollHeight - log.scrollTop - log.clientHeight") > 100
    await log.evaluate("log => { log.scrollTop = 0; }")
    assert await log.evaluate("log => log.scrollTop") == 0
    await chat.page.click("#latest")
    await expect(chat.answers.last.locator(".content p").last).to_be_in_viewport()
    await expect(chat.page.locator("#latest")).to_be_hidden()


async def test_reload_keeps_chat_and_settings(chat: Chat) -> None:
    await chat.page.fill("#system", "Be brief.")
    await chat.page.fill("#temperature", "0.5")
    await chat.page.uncheck("#thinking")
    await chat.ask("Hello", says("Hi"))
    chat.scripts = [ENDLESS]
    await chat.write("More")
    await expect(chat.answers.last.locator(".content")).to_contain_text("word")
    await chat.page.reload()
    await expect(chat.questions.locator(".text")).to_have_text(["Hello", "More"])
    await expect(chat.answers.locator(".content").first).to_have_text("Hi")
    await expect(chat.answers.last.locator(".content")).to_contain_text("word")
    await expect(chat.answers.last.locator(".note")).to_have_text("Stopped.")
    await expect(chat.page.locator("#system")).to_have_value("Be brief.")
    await expect(chat.page.locator("#temperature")).to_have_value("0.5")
    await expect(chat.page.locator("#thinking")).not_to_be_checked()
    await chat.ask("Again")
    assert chat.sent[-1]["messages"][1:3] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]


async def test_reload_keeps_the_model_that_was_chosen(chat: Chat) -> None:
    both = {"object": "list", "data": [{"id": MODEL}, {"id": "fine-tuned"}]}
    await chat.page.route("**/models", lambda route: route.fulfill(json=both))
    await chat.page.reload()
    await chat.page.select_option("#model", "fine-tuned")
    await expect(chat.page).to_have_title("fine-tuned")
    await chat.page.reload()
    await expect(chat.page.locator("#model")).to_have_value("fine-tuned")
    await chat.ask("Hello")
    assert chat.sent[-1]["model"] == "fine-tuned"
    await chat.page.unroute("**/models")
    await chat.page.reload()
    await expect(chat.page.locator("#model")).to_have_value(MODEL)


@pytest.mark.parametrize("remember", [False, True], ids=["not asked", "asked"])
async def test_reload_keeps_the_key_only_if_asked(browser: Browser, *, remember: bool) -> None:
    app = create_app(JobQueue(), access=Access(key="let-me-in", listens_on="127.0.0.1"))
    async with serving(app, "127.0.0.1", 0) as port, visiting(browser, f"http://127.0.0.1:{port}") as page:
        await expect(page.locator("#state")).to_have_text("A key is needed")
        await page.fill("#key", "wrong")
        await page.press("#key", "Tab")
        await expect(page.locator("#state")).to_have_text("This key is not the right one")
        await page.set_checked("#remember", remember)
        await page.fill("#key", "let-me-in")
        await page.press("#key", "Tab")
        await expect(page.locator("#state")).to_have_text("No worker has joined yet")
        await page.reload()
        after = "No worker has joined yet" if remember else "A key is needed"
        await expect(page.locator("#state")).to_have_text(after)
        stored = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert ("let-me-in" in stored) is remember


async def test_markdown_is_rendered_and_nothing_in_it_runs(chat: Chat) -> None:
    await chat.ask("Show me", says(*(MARKDOWN[at : at + 9] for at in range(0, len(MARKDOWN), 9))))
    content = chat.answers.locator(".content")
    await expect(content.locator("strong")).to_have_text("Python")
    await expect(content.locator("pre code")).to_contain_text("# <b>not bold</b>")
    await expect(content.locator("table").first.locator("th")).to_have_text(["city", "degrees"])
    assert (
        await content.locator("table").first.locator("td").last.evaluate("cell => getComputedStyle(cell).textAlign")
        == "right"
    )
    links = content.locator("a")
    assert [await link.get_attribute("href") for link in await links.all()] == [
        "https://example.com/",
        "https://example.com/leak.png",
    ]
    await expect(links.first).to_have_attribute("rel", "noopener noreferrer")
    await expect(content.locator("script, img")).to_have_count(0)
    assert await chat.page.evaluate("window.hacked") is None


async def test_page_may_run_and_load_nothing_but_its_own(chat: Chat) -> None:
    inline = """() => {
      const script = document.createElement("script");
      script.textContent = "window.hacked = 1";
      document.body.append(script);
    }"""
    response = await chat.page.request.get(chat.page.url)
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-")
    assert "unsafe" not in policy
    second = await chat.page.context.new_page()
    await second.goto(chat.page.url)
    await second.evaluate(inline)
    assert await second.evaluate("window.hacked") is None


async def test_code_and_answers_can_be_copied(chat: Chat) -> None:
    await chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await chat.ask("Show me", says(MARKDOWN))
    await chat.page.get_by_role("button", name="Copy code").click()
    await expect(chat.page.get_by_role("button", name="Copied")).to_be_visible()
    assert (await chat.page.evaluate("navigator.clipboard.readText()")).startswith("for number in range(3):\n    print")
    await chat.answers.get_by_role("button", name="Copy", exact=True).click()
    await until_equal(chat.page, "navigator.clipboard.readText()", MARKDOWN)


async def test_copying_works_where_there_is_no_clipboard_api(chat: Chat) -> None:
    await chat.page.context.grant_permissions(["clipboard-read"])
    await chat.ask("Show me", says("by hand"))
    # As over plain HTTP from another machine.
    await chat.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    await chat.answers.get_by_role("button", name="Copy", exact=True).click()
    await expect(chat.page.get_by_role("button", name="Copied")).to_be_visible()
    await until_equal(chat.page, "navigator.clipboard.readText()", "by hand")


async def until_equal(page: Page, expression: str, value: str) -> None:
    async with asyncio.timeout(ENOUGH_SECONDS):
        while await page.evaluate(expression) != value:
            await asyncio.sleep(0.05)


async def test_question_can_be_edited(chat: Chat) -> None:
    await chat.ask("one", says("1"))
    await chat.ask("two", says("2"))
    await chat.questions.first.get_by_role("button", name="Edit").click()
    await chat.questions.first.get_by_role("textbox").fill("three")
    await chat.questions.first.get_by_role("textbox").press("Escape")
    await expect(chat.questions.locator(".text")).to_have_text(["one", "two"])
    await chat.questions.first.get_by_role("button", name="Edit").click()
    await chat.questions.first.get_by_role("textbox").fill("three")
    await chat.questions.first.get_by_role("button", name="Save and send").click()
    await chat.over()
    await expect(chat.questions.locator(".text")).to_have_text(["three"])
    assert chat.sent[-1]["messages"] == [{"role": "user", "content": "three"}]


async def test_answer_can_be_regenerated(chat: Chat) -> None:
    await chat.ask("one", says("1"))
    await chat.ask("two", says("2"))
    chat.scripts = [says("another 1")]
    await chat.answers.first.get_by_role("button", name="Regenerate").click()
    await expect(chat.answers.locator(".content")).to_have_text(["another 1"])
    await expect(chat.questions.locator(".text")).to_have_text(["one"])
    assert chat.sent[-1]["messages"] == [{"role": "user", "content": "one"}]


async def test_settings_reach_the_engine(chat: Chat) -> None:
    await chat.ask("plain")
    assert not {"temperature", "max_tokens", "tools"} & set(chat.sent[-1]), "the model's own, unless they are set"
    assert chat.sent[-1]["chat_template_kwargs"] == {"enable_thinking": True}
    await chat.page.fill("#system", "Be brief.")
    await chat.page.fill("#max-tokens", "50")
    await chat.page.fill("#temperature", "0")
    await chat.page.uncheck("#thinking")
    await chat.page.check("#tools")
    await chat.page.click("#clear")
    await chat.ask("Hello", chunks({"content": "Hi"}, finish="length"))
    body = chat.sent[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 50, 0)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["tools"][0]["function"]["name"] == "get_weather"
    await expect(chat.answers.locator(".note")).to_have_text("Cut off at the limit of tokens.")


async def test_escape_stops_and_that_is_not_an_error(chat: Chat, api: Api) -> None:
    chat.scripts = [ENDLESS]
    await chat.write("stop me by the key")
    await expect(chat.answers.locator(".content")).to_contain_text("word")
    await chat.page.keyboard.press("Escape")
    await expect(chat.answers.locator(".note")).to_have_text("Stopped.")
    await expect(chat.answers.locator(".error")).to_be_hidden()
    await until_aborted(api, "stop me by the key")


async def until_aborted(api: Api, question: str) -> None:
    """Return once the engine has seen the end of the request with this question, which its client did not wait for."""
    last = {"role": "user", "content": question}
    async with asyncio.timeout(ENOUGH_SECONDS):
        while not any(
            each["body"]["messages"][-1] == last and each["end"] == "aborted"
            for each in await api.worker.engine_requests()
            if each["path"] == "/v1/chat/completions"
        ):
            await asyncio.sleep(0.05)


async def test_stopped_answer_stays_part_of_the_chat(chat: Chat) -> None:
    chat.scripts = [ENDLESS]
    await chat.write("first")
    await expect(chat.answers.locator(".content")).to_contain_text("word")
    await chat.page.click("#stop")
    await chat.over()
    await chat.ask("second")
    roles = [message["role"] for message in chat.sent[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


async def test_tool_results_are_asked_for_and_labelled(chat: Chat) -> None:
    await chat.page.check("#tools")
    await chat.ask(
        "Weather in Seoul and Paris?", chunks({"tool_calls": [CALL]}, {"tool_calls": [OTHER_CALL]}, finish="tool_calls")
    )
    await expect(chat.page.locator("pre.call")).to_have_text(
        ['get_weather({"city": "Seoul"})', 'get_weather({"city": "Paris"})']
    )
    prompt = chat.page.get_by_label('Result of get_weather({"city": "Seoul"})')
    await expect(prompt).to_have_value('{"city": "Seoul", "temperature_c": 21, "sky": "clear"}')
    await prompt.press("Enter")
    await chat.page.get_by_label('Result of get_weather({"city": "Paris"})').fill("rain")
    await chat.ask("rain")
    results = chat.page.locator("article.tool")
    await expect(results.locator(".label")).to_have_text(
        ['Result of get_weather({"city": "Seoul"})', 'Result of get_weather({"city": "Paris"})']
    )
    await expect(results.locator("pre").last).to_have_text("rain")
    _, call, seoul, paris = chat.sent[-1]["messages"]
    assert [each["id"] for each in call["tool_calls"]] == ["call_1", "call_2"]
    assert (seoul["role"], seoul["tool_call_id"], json.loads(seoul["content"])["temperature_c"]) == (
        "tool",
        "call_1",
        21,
    )
    assert paris == {"role": "tool", "tool_call_id": "call_2", "content": "rain"}
    await expect(chat.page.get_by_label("Message")).to_have_value("")


async def test_error_is_one_sentence_with_its_details_folded(chat: Chat) -> None:
    error = {
        "object": "error",
        "message": "temperature must not be negative. See the manual.",
        "type": "BadRequest",
        "code": 400,
    }
    await chat.ask("Hello", {"status": 400, "body": json.dumps(error)})
    shown = chat.answers.locator(".error")
    await expect(shown.locator("span")).to_have_text("temperature must not be negative.")
    await expect(shown.locator("pre")).to_be_hidden()
    await shown.locator("summary").click()
    await expect(shown.locator("pre")).to_contain_text("HTTP 400")
    await expect(shown.locator("pre")).to_contain_text("See the manual.")
    await chat.ask("Hello again")
    assert chat.sent[-1]["messages"] == [{"role": "user", "content": "Hello again"}], "what failed is not repeated"


@pytest.mark.parametrize("then", ["drop", "error"])
async def test_stream_that_breaks_keeps_what_came_and_says_so(chat: Chat, then: str) -> None:
    await chat.ask("Hello", {"events": 3, "then": then})
    await expect(chat.answers.locator(".content")).to_have_text("word word word")
    await expect(chat.answers.locator(".error span")).not_to_be_empty()
    await expect(chat.answers.get_by_role("button", name="Try again")).to_be_enabled()


async def test_screen_readers_hear_the_answer_once_not_every_token(chat: Chat) -> None:
    live = chat.page.locator("[aria-live], [role=status], [role=log], [role=alert], output")
    await expect(live).to_have_count(1)
    await chat.page.evaluate(
        "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('[role=status]').textContent))"
        ".observe(document.querySelector('[role=status]'), { childList: true, characterData: true, subtree: true })"
    )
    await chat.ask("Hello", chunks(*({"content": f"word{number} "} for number in range(30)), pause=0.01))
    heard = await chat.page.evaluate("heard")
    assert [text for text in heard if "word" in text] == ["".join(f"word{number} " for number in range(30))]
    assert len(heard) <= 2


async def test_every_control_has_a_label_and_focus_follows_the_page(chat: Chat) -> None:
    assert await focused(chat.page) == "prompt"
    names = await chat.page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].filter((e) => e.checkVisibility())"
        ".map((e) => e.labels?.[0]?.textContent || e.ariaLabel || e.textContent)"
    )
    assert all(name.strip() for name in names)
    order = []
    await chat.page.focus("#clear")
    for _ in range(9):
        await chat.page.keyboard.press("Tab")
        order.append(await focused(chat.page))
    assert order[:8] == ["prompt", "send", "model", "system", "temperature", "max-tokens", "thinking", "tools"]


async def focused(page: Page) -> str:
    return str(await page.evaluate("document.activeElement.id"))


async def test_blocks_that_are_finished_are_not_drawn_again(chat: Chat) -> None:
    chat.scripts = [chunks({"content": "first\n\n"}, *({"content": "more "} for _ in range(40)), pause=0.02)]
    await chat.write("Hello")
    await expect(chat.answers.locator(".block")).to_have_count(2)
    await chat.answers.locator(".block").first.evaluate("block => { block.dataset.kept = 'yes'; }")
    await chat.over()
    await expect(chat.answers.locator(".block").first).to_have_attribute("data-kept", "yes")
    await expect(chat.answers.locator(".block").last).to_contain_text("more more")


WIDTHS = {"desktop": DESKTOP, "phone": PHONE}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_page_fits_and_can_be_read(api: Api, browser: Browser, width: str, scheme: Any) -> None:
    view = WIDTHS[width]
    async with visiting(browser, api.url, viewport=view, color_scheme=scheme) as page:
        chat = Chat(page)
        await chat.listen()
        await chat.ask("Hello", chunks({"reasoning_content": "thoughts"}, {"content": MARKDOWN}))
        await chat.ask("Call", chunks({"tool_calls": [CALL]}, finish="tool_calls"))
        await chat.ask("21 degrees")
        await chat.ask("Fail", {"status": 400, "body": '{"message": "wrong", "type": "BadRequest"}'})
        await page.locator(".error summary").click()
        assert await page.evaluate("document.documentElement.scrollWidth") <= view["width"]
        header, prompt = await page.locator("header").bounding_box(), await page.locator("#prompt").bounding_box()
        assert header is not None
        assert prompt is not None
        assert header["height"] < view["height"] * 0.1
        assert prompt["width"] > min(view["width"], 700) * 0.6
        send = await page.locator("#send").bounding_box()
        assert send is not None
        assert abs(middle_of(prompt) - middle_of(send)) < 1
        await expect(page.locator(".error pre")).to_be_in_viewport(ratio=1)
        assert await page.evaluate(CUT_OFF) == []
        assert await low_contrasts(page) == []
        if width == "phone":
            await page.get_by_role("button", name="Settings").click()
            await expect(page.locator("#system")).to_be_in_viewport()
            assert await low_contrasts(page) == []
            assert await page.evaluate(CUT_OFF) == []
            await page.keyboard.press("Escape")
            await expect(page.locator("#system")).to_be_hidden()
            assert await focused(page) == "open-settings"
            await page.keyboard.press("Enter")
            await page.get_by_role("button", name="Done").click()
            await expect(page.locator("#system")).to_be_hidden()
            assert await focused(page) == "open-settings"


def middle_of(box: Any) -> float:
    return float(box["y"] + box["height"] / 2)


# Words that are broken over two lines, names and numbers that are, texts that end in an ellipsis, and hints in fields
# that are wider than the field.
CUT_OFF = """() => {
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
  const lines = (element) => element.getClientRects().length;
  const broken = [];
  for (const element of shown("#log th, #log td")) {
    const text = document.createRange();
    text.selectNodeContents(element);
    if (new Set([...text.getClientRects()].map(({ top }) => top)).size > 1) broken.push(element);
  }
  broken.push(...shown(".numbers > span").filter((element) => lines(element) > 1));
  broken.push(...shown("h1, #state").filter((element) => element.scrollWidth > element.clientWidth));
  const pen = document.createElement("canvas").getContext("2d");
  for (const field of shown("input[placeholder]")) {
    const style = getComputedStyle(field), arrows = field.type === "number" ? 20 : 0;
    pen.font = style.font;
    const room = field.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - arrows;
    if (pen.measureText(field.placeholder).width > room) broken.push(field);
  }
  return broken.map((element) => `${element.tagName} ${element.textContent || element.placeholder}`);
}"""


async def low_contrasts(page: Page) -> list[Any]:
    """The texts on the page whose contrast is less than 4.5:1, by WCAG's formula, with their colours."""
    found: list[Any] = await page.evaluate(CONTRASTS)
    return found


CONTRASTS = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = (top, under) => top.rgb.map((value, i) => value * top.a + under[i] * (1 - top.a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    if (!element) return [255, 255, 255];
    const colour = parse(getComputedStyle(element).backgroundColor);
    return colour.a === 1 ? colour.rgb : over(colour, background(element.parentElement));
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    const written = own || element.matches("input, textarea");
    if (!written || !element.checkVisibility() || element.matches("script, option, .unseen")) continue;
    const behind = background(element);
    for (const pseudo of [null, ...(element.placeholder ? ["::placeholder"] : [])]) {
      const colour = over(parse(getComputedStyle(element, pseudo).color), behind);
      const [light, dark] = [luminance(colour), luminance(behind)].sort((a, b) => b - a);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < 4.5) found.push([element.tagName, element.className, element.textContent.slice(0, 20), ratio]);
    }
  }
  return found;
}"""


async def test_swagger_needs_no_other_host(api: Api, browser: Browser) -> None:
    async with visiting(browser, f"{api.url}/docs") as page:
        await expect(page.locator(".info .title")).to_contain_text("Local RunPod")
        await expect(page.locator(".opblock-summary-path").first).to_be_visible()


async def test_page_has_a_favicon(chat: Chat) -> None:
    href = await chat.page.locator("link[rel=icon]").get_attribute("href")
    icon = await chat.page.request.get(f"{chat.page.url}{str(href).lstrip('/')}")
    assert (icon.status, icon.headers["content-type"]) == (200, "image/svg+xml")


async def test_figures_of_the_last_minute_are_live(chat: Chat) -> None:
    await chat.ask("Hello", chunks({"content": "Hi"}))
    figures = chat.page.get_by_role("region", name="The last minute")
    completed = figures.locator("dt", has_text="Jobs completed").locator("xpath=following-sibling::dd[1]")
    await expect(completed).to_have_text(re.compile(r"[1-9]\d*"))
    before = int(await completed.inner_text())
    await chat.ask("Hello again")
    await expect(completed).not_to_have_text(str(before))
    await expect(figures).to_contain_text(re.compile(r"First token, median\s*\d+\.\d\d s"))


async def test_question_waits_while_the_engine_is_restarted(browser: Browser, tmp_path: Path) -> None:
    port, ready = free_port(), tmp_path / "ready"
    flags = ("--rp_serve_api", "--rp_api_port", str(port))
    other = {"answers": {"/v1/models": {"object": "list", "data": [{"id": "another"}]}}}
    starts = [ENGINE, other | {"ready_when": str(ready)}]
    worker = await start_worker(None, arguments=flags, engine=starts)
    url = f"http://127.0.0.1:{port}"
    try:
        await until_api_is_ready(url, worker)
        async with visiting(browser, url) as page:
            chat = Chat(page)
            await chat.listen()
            await expect(page.locator("#state")).to_have_text("Ready")
            pid = worker.engine_pid()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda: len(worker.engine_starts()) == 2, 30)
            await chat.write("Hello")
            again = re.compile(r"The engine died; loading the model again.*, \d+ s")
            await expect(chat.answers.locator(".waiting")).to_have_text(again)
            ready.touch()
            await expect(chat.answers.locator(".content")).to_have_text("Fine.")
            await expect(page).to_have_title("another")
            assert chat.sent[-1]["model"] == "another"
    finally:
        await worker.stop()


async def test_page_waits_for_a_worker_that_is_away(api: Api, browser: Browser) -> None:
    async with visiting(browser, api.url) as page:
        chat = Chat(page)
        await chat.listen()
        last_look, asked = asyncio.Event(), asyncio.Event()

        async def go_away(route: Route) -> None:
            if last_look.is_set():
                await route.abort()
                return
            last_look.set()
            response = await route.fetch()
            await asked.wait()  # its news is old when it comes: it must not send the question
            await route.fulfill(response=response)

        await page.route("**/health", go_away)
        await asyncio.wait_for(last_look.wait(), 20)
        await chat.write("Hello")
        asked.set()
        await expect(page.locator(".waiting")).to_have_text(re.compile("The worker cannot be reached, trying again"))
        assert chat.sent == []
        await page.unroute("**/health")
        await expect(chat.answers.locator(".content")).to_have_text("Fine.")
