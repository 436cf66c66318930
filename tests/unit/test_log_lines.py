"""Every line of the log in its form: the worker's records, what others print, and the engine's lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import logs, meters
from common.logs import JsonLines, LogForm, line_of, mask_for
from common.masking import Mask
from serverless.environment import PlatformName
from serverless.invocation import log_form
from sglang_engine.engine_lines import BURST_LINES, LINES_A_SECOND, EngineLines, differing_arguments

LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR", "CRITICAL": "ERROR"}


@pytest.fixture
def json_log() -> Iterator[io.StringIO]:
    """What the logger `worker.test` writes, as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs._Formatter(LogForm.JSON))
    log = logging.getLogger("worker.test")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    yield written
    log.removeHandler(handler)
    log.propagate = True


@pytest.mark.parametrize(
    ("asked_for", "platform", "form"),
    [
        ("", PlatformName.RUNPOD, LogForm.JSON),
        ("", PlatformName.WAVERLESS, LogForm.JSON),
        ("", PlatformName.LOCAL, LogForm.TEXT),
        ("text", PlatformName.RUNPOD, LogForm.TEXT),
        (" JSON ", PlatformName.LOCAL, LogForm.JSON),
        ("xml", PlatformName.RUNPOD, LogForm.JSON),
    ],
)
def test_log_is_json_on_a_platform_and_text_elsewhere_unless_asked_for(
    asked_for: str, platform: PlatformName, form: LogForm
) -> None:
    assert log_form({"LOG_FORMAT": asked_for}, platform) is form


def test_record_is_one_object_with_the_sdk_s_names_and_its_job_s_id(json_log: io.StringIO) -> None:
    log = logging.getLogger("worker.test")
    token = logs.request_id.set("job-1")
    try:
        for level in LEVELS:
            log.log(getattr(logging, level), "two\nlines", extra={"fields": {"outputs": 3, "message": "not this"}})
    finally:
        logs.request_id.reset(token)
    lines = [json.loads(line) for line in json_log.getvalue().splitlines()]
    assert [line["level"] for line in lines] == [LEVELS[level] for level in LEVELS if level != "DEBUG"]
    for line in lines:
        assert (line["requestId"], line["message"], line["source"]) == ("job-1", "two\nlines", "worker")
        assert line["outputs"] == 3


def test_traceback_is_part_of_its_line(json_log: io.StringIO) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("worker.test").exception("it failed")
    [line] = json_log.getvalue().splitlines()
    assert json.loads(line)["message"].startswith("it failed\nTraceback (most recent call last):")


printed = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20) | st.sampled_from(
    ['{"a": 1}', '{"requestId": "j", "message": "hf_abcdef", "level": "INFO"}', "{", '{"a": NaN}', "[1]", '"text"']
)


@settings(max_examples=50)
@given(st.lists(printed, max_size=5), st.integers(1, 9))
def test_whatever_is_printed_comes_out_as_one_object_a_line(words: list[str], size: int) -> None:
    data = "".join(f"{word}\n" for word in words).encode()
    lines = JsonLines(Mask(["hf_abcdef"]))
    shown = "".join(lines.feed(data[begin : begin + size]) for begin in range(0, len(data), size)) + lines.rest()
    objects = [json.loads(line) for line in shown.split("\n")[:-1]]
    assert len(objects) == sum(bool(word.strip()) for word in words)
    assert all(isinstance(value, dict) for value in objects)
    assert "hf_abcdef" not in shown


def test_secrets_in_an_object_are_masked_and_it_stays_an_object() -> None:
    value = {
        "message": 'GET "/x?key=abc"\n{"api_key": "k"}',
        "api_key": "k",
        "deep": [{"url": "https://u:pw@host/"}, {"hf_abcdef": 1}],
    }
    line = JsonLines(Mask(["hf_abcdef"])).feed(f"{json.dumps(value)}\n".encode())
    assert json.loads(line) == {
        "message": 'GET "/x?key=***"\n{"api_key": ***}',
        "api_key": "***",
        "deep": [{"url": "https://u:***@host/"}, {"***": 1}],
    }


@pytest.mark.parametrize("line", ['{"a": 1,  "b": "ü"}', '{"a":1,"a":2} ', "{}"])
def test_object_without_secrets_is_passed_on_as_it_is(line: str) -> None:
    assert JsonLines(Mask(["hf_abcdef"])).feed(f"{line}\n".encode()) == f"{line}\n"


PARTS = ("hf_abcdef", "?key=", "&token=", "://u:", "pw@", "api_key", 'password="', '"', "'", ":", "=", " ", "\\", "x")
texts = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)


@given(st.dictionaries(texts, texts | st.lists(texts, max_size=2) | st.none(), max_size=4), st.booleans())
def test_object_s_texts_are_masked_each_by_itself_whatever_the_line_looks_like(value: Any, is_compact: bool) -> None:
    mask = Mask(["hf_abcdef"])
    line = json.dumps(value, separators=(",", ":") if is_compact else None)
    assert json.loads(JsonLines(mask).feed(f"{line}\n".encode())) == mask.value(value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"n": ' + "9" * 5000 + "}"])
def test_hostile_line_is_printed_text(text: str) -> None:
    [line] = JsonLines(Mask()).feed(f"{text}\n".encode()).splitlines()
    assert json.loads(line)["source"] == "output"


def test_beginning_of_a_line_without_end_is_an_object_with_a_note() -> None:
    lines = mask_for(LogForm.JSON, Mask())
    assert lines.feed(b"{" + b"x" * 100_000) == ""
    assert "bytes more" in json.loads(lines.feed(b"\n"))["message"]


def test_line_for_people_is_short() -> None:
    assert line_of(LogForm.TEXT, "taking jobs", seconds=0)[8:] == " INFO    taking jobs"
    assert line_of(LogForm.TEXT, "Load weight begin.", source="engine")[8:] == " INFO    engine: Load weight begin."


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def said(text: str, form: LogForm = LogForm.JSON) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in EngineLines(form).of(text).splitlines()]
    assert all(line["source"] == "engine" and line["requestId"] is None for line in lines)
    return [(line["level"], line["message"]) for line in lines]


ENGINE_LINES = {
    "[2026-11-25 03:38:10] Load weight begin. avail mem=21.84 GB": ("INFO", "Load weight begin. avail mem=21.84 GB"),
    "[2026-11-25 03:38:10 TP1] Load weight begin.": ("INFO", "TP1: Load weight begin."),
    "[2026-11-25 03:38:10.123] INFO:     Started server process [7]": ("INFO", "Started server process [7]"),
    'INFO:     127.0.0.1:4 - "POST /generate HTTP/1.1" 400 Bad Request': (
        "INFO",
        '127.0.0.1:4 - "POST /generate HTTP/1.1" 400 Bad Request',
    ),
    "[2026-11-25 03:38:10] WARNING:  slow": ("WARN", "slow"),
    "x.py:1: FutureWarning: gone soon": ("WARN", "x.py:1: FutureWarning: gone soon"),
    "[2026-11-25 03:38:10 TP0] Scheduler hit an exception: Traceback (most recent call last):": (
        "ERROR",
        "TP0: Scheduler hit an exception: Traceback (most recent call last):",
    ),
    "torch.OutOfMemoryError: CUDA out of memory.": ("ERROR", "torch.OutOfMemoryError: CUDA out of memory."),
}


@pytest.mark.parametrize(("line", "expected"), ENGINE_LINES.items())
def test_engine_s_line_has_its_level_and_no_second_time(line: str, expected: tuple[str, str]) -> None:
    assert said(f"{line}\n") == [expected]


def test_frames_of_the_engine_s_traceback_are_errors_too() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py", line 1\n    f()\nValueError: no\nnext\n'
    assert [level for level, _ in said(text)] == ["ERROR", "ERROR", "ERROR", "ERROR", "INFO"]


NOISE = (
    "/x/torchvision/io/image.py:13: UserWarning: Failed to load image Python extension: 'no'\n  warn(\n",
    "[2026-11-25 03:38:10] Ignore import error when loading sglang.srt.models.grok: no attribute\n",
    '[2026-11-25 03:38:12] INFO:     127.0.0.1:42682 - "GET /health HTTP/1.1" 200 OK\n',
    '[2026-11-25 03:38:11] INFO:     127.0.0.1:42650 - "GET /health HTTP/1.1" 503 Service Unavailable\n',
)


@pytest.mark.parametrize("noise", NOISE)
def test_known_noise_is_dropped_and_what_follows_is_not(noise: str) -> None:
    assert said(f"{noise}[2026-11-25 03:38:13] next\n") == [("INFO", "next")]


def test_arguments_are_cut_to_what_differs_from_sglang_s_defaults() -> None:
    dump = (
        "server_args={'model_path': 'a/b, c', 'tokenizer_mode': 'auto', 'trust_remote_code': False, "
        "'api_key': ***, 'role': <Role.X: 'x'>, 'cuda_graph_config': {'bs': [1, 2]}, 'unheard_of': 3, '_set': True}"
    )
    kept = (
        "{'model_path': 'a/b, c', 'api_key': ***, 'role': <Role.X: 'x'>, 'cuda_graph_config': {'bs': [1, 2]}, "
        "'unheard_of': 3}"
    )
    assert differing_arguments(dump) == f"what differs from SGLang's defaults: server_args={kept}"
    assert len(differing_arguments("server_args={'bs': [" + "1, " * 5000 + "1]}")) < 200


def test_phases_of_a_start_are_counted_from_sglang_s_own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters.START_PHASE_SECONDS, "values", {})
    graphs = "{prefill=0.50, decode=2.25, target_verify=0.00}"
    said(
        "[2026-11-25 03:38:10] Engine startup timings (s): load_weight=31.03, kv_cache_allocation=0.40, "
        f"scheduler_e2e=41.98, cuda_graph={graphs}, tokenizer_e2e=14.35\n"
    )
    assert {labels[0]: seconds for labels, seconds in meters.START_PHASE_SECONDS.values.items()} == {
        "load_weight": 31.03,
        "kv_cache_allocation": 0.4,
        "scheduler": 41.98,
        "tokenizer": 14.35,
        "cuda_graphs": 2.75,
    }


def test_progress_bar_is_shown_now_and_then_and_at_its_end() -> None:
    clock = Clock()
    lines = EngineLines(LogForm.TEXT, clock)
    shown = lines.of("".join(f"loading: {percent}%\r" for percent in range(100)))
    clock.now = 11.0
    shown += lines.of("loading: 99%\rloading: 99.5%\rloading: 100%\n")
    assert [line.split()[-1] for line in shown.splitlines()] == ["0%", "99%", "100%"]


def test_flood_of_the_engine_is_cut_and_a_line_says_by_how_much() -> None:
    clock = Clock()
    lines = EngineLines(LogForm.JSON, clock)
    many = "a word\n" * (BURST_LINES + 500)
    assert lines.of(many).count("a word") == BURST_LINES
    assert lines.of("b\n" * 10_000) == ""
    clock.now = 2.0
    note, *rest = [json.loads(line)["message"] for line in lines.of("c\n" * 1000).splitlines()]
    assert note.startswith("… 10500 lines of the engine are left out here")
    assert rest == ["c"] * (2 * LINES_A_SECOND)
    assert "… 800 lines" in lines.rest()
