"""The command line: modes, both spellings of every flag, and mistakes reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.logs import LogForm
from serverless.arguments import Arguments, parse_arguments

JOB = {"id": "local_test", "input": {"messages": []}}
WORKER = {"RUNPOD_WEBHOOK_GET_JOB": "https://x"}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_worker_where_the_environment_names_a_queue() -> None:
    assert parse_arguments([], WORKER) == Arguments()


def test_job_on_the_command_line_comes_before_everything() -> None:
    for environ in ({}, WORKER):
        assert parse_arguments(["--test_input", '{"input": {"messages": []}}'], environ).test_job == JOB


def test_job_in_a_file_counts_only_where_nothing_else_is_asked_for(in_an_empty_folder: Path) -> None:
    (in_an_empty_folder / "test_input.json").write_text(json.dumps({"input": {"messages": []}}))
    assert parse_arguments([], {}).test_job == JOB
    assert parse_arguments([], WORKER).test_job is None
    assert parse_arguments(["--rp_serve_api"], {}).test_job is None


@pytest.mark.parametrize("prefix", ["rp", "waverless"])
def test_api_flags_in_both_spellings(prefix: str) -> None:
    flags = f"--{prefix}_serve_api --{prefix}_api_host 0.0.0.0 --{prefix}_api_port 80 --{prefix}_api_concurrency 7"
    arguments = parse_arguments([*flags.split(), f"--{prefix}_log_level", "debug"], {})
    assert arguments == Arguments(serve_api=True, api_host="0.0.0.0", api_port=80, api_concurrency=7, log_level="DEBUG")


def test_api_listens_on_loopback_unless_told() -> None:
    arguments = parse_arguments(["--rp_serve_api"], WORKER)
    assert (arguments.api_host, arguments.api_port, arguments.api_concurrency) == ("127.0.0.1", 8000, None)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--rp_serve"], "unrecognized arguments: --rp_serve"),
        (["--test_input", "{"], "--test_input is not valid JSON: "),
        (["--test_input", "[" * 100_000], "--test_input is not valid JSON: "),
        (["--test_input", "[]"], '--test_input must be an object with an "input"'),
        (["--test_input", '{"input": 1}', "--rp_serve_api"], "give only one of them"),
        (["--rp_api_port", "x"], "invalid port value: 'x'"),
        (["--rp_api_port", "70000"], "70000 is not a port"),
        (["--rp_api_concurrency", "0"], "0 is less than 1"),
        (["--rp_log_level", "LOUD"], "invalid choice: 'LOUD'"),
        ([], "no job: give one with --test_input"),
    ],
)
def test_mistake_is_told_in_one_line(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(argv, {})
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert exit_.value.code == 2


def test_mistake_on_a_platform_is_an_object_of_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--no-such-flag"], WORKER, form=LogForm.JSON)
    line = json.loads(capsys.readouterr().err)
    assert "unrecognized arguments: --no-such-flag" in line["message"]
    assert (line["requestId"], line["level"]) == (None, "ERROR")


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["--help"], {})
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for flag in ("serve_api", "api_host", "api_port", "api_concurrency", "log_level"):
        assert f"--rp_{flag}" in text
        assert f"--waverless_{flag}" in text
    assert "--test_input" in text
