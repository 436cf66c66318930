"""What the page says about the tiny GLM, and that a wrong file is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.settings import ConfigurationError
from embedded.conversations import CONVERSATIONS, introduction
from serverless.settings import WorkerSettings


def test_every_starter_is_the_beginning_of_a_known_conversation(tmp_path: Path) -> None:
    path = tmp_path / "introduction.json"
    path.write_text(json.dumps(introduction()), encoding="utf-8")
    read = WorkerSettings.from_environ({"PAGE_INTRODUCTION": str(path)}).page_introduction
    assert read == introduction()
    known = {(c.messages[0]["content"], bool(c.tools), c.thinking) for c in CONVERSATIONS if len(c.messages) == 1}
    offered = {(s["prompt"], s["settings"]["tools"], s["settings"]["thinking"]) for s in introduction()["starters"]}
    assert offered <= known
    assert len(offered) >= 5


@pytest.mark.parametrize("text", ["", "[]", '{"text": "Hi"}', '{"text": "Hi", "starters": ["Hello"]}', "{"])
def test_wrong_introduction_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "introduction.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"PAGE_INTRODUCTION=.*expected a JSON file of the form"):
        WorkerSettings.from_environ({"PAGE_INTRODUCTION": str(path)})


def test_missing_introduction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="PAGE_INTRODUCTION"):
        WorkerSettings.from_environ({"PAGE_INTRODUCTION": "/no/such/file.json"})
