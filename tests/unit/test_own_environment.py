"""The environment of a worker, as people write it: levels, intervals, ids; and the flags of both SDKs."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from common import logs
from common.logs import LogForm, configure_logging, level_named
from common.settings import ConfigurationError
from serverless import log
from serverless.arguments import parse_arguments
from serverless.environment import translate
from serverless.settings import WorkerSettings

RUNPOD = {"RUNPOD_ENDPOINT_ID": "e"}
WAVERLESS = {"WAVERLESS_ENDPOINT_ID": "e", "WAVERLESS_POD_ID": "p"}


@pytest.mark.parametrize(
    ("written", "level"),
    [
        *((text, "WARN") for text in ("WARN", "warn", "WARNING", "Warning", " warning ")),
        *((text, "ERROR") for text in ("error", "CRITICAL", "fatal")),
        ("debug", "DEBUG"),
        ("Info", "INFO"),
        ("trace", "TRACE"),
        ("notset", "NOTSET"),
    ],
)
def test_level_is_taken_as_people_write_it(written: str, level: str) -> None:
    assert level_named(written) == level
    assert WorkerSettings.from_environ({"RUNPOD_LOG_LEVEL": written}).log_level == level
    assert parse_arguments(["--rp_serve_api", "--rp_log_level", written], {}).log_level == level


def test_unknown_level_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="expected one of NOTSET, TRACE, DEBUG, INFO, WARN, ERROR"):
        WorkerSettings.from_environ({"RUNPOD_LOG_LEVEL": "loud"})
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["--waverless_log_level", "loud"], {})
    assert exit_.value.code == 2
    assert "NOTSET, TRACE, DEBUG, INFO, WARN, ERROR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        *((text, "10000") for text in ("0", "-5", "soon", "nan", "inf", "1e12")),
        *((text, "1000") for text in ("1", "500", "999.9", "0.5")),
        ("1500.7", "1500"),
        ("2e3", "2000"),
    ],
)
def test_ping_interval_that_would_stop_the_heart_is_replaced(asked: str, used: str) -> None:
    assert translate(RUNPOD | {"RUNPOD_PING_INTERVAL": asked}) == {"RUNPOD_PING_INTERVAL": used}
    assert translate(WAVERLESS | {"WAVERLESS_PING_INTERVAL": asked})["RUNPOD_PING_INTERVAL"] == used


@pytest.mark.parametrize("asked", ["1000", "10000", "4500"])
def test_ping_interval_that_the_heart_can_do_with_stays(asked: str) -> None:
    assert translate(RUNPOD | {"RUNPOD_PING_INTERVAL": asked}) == {}


@pytest.mark.parametrize(
    ("environ", "pod_id"),
    [
        (RUNPOD | {"DEVICE_ID": "gpu-3"}, "gpu-3"),
        (RUNPOD | {"DEVICE_ID": "gpu-3", "RUNPOD_POD_ID": "r"}, None),
        ({"WAVERLESS_ENDPOINT_ID": "e", "DEVICE_ID": "gpu-3"}, "gpu-3"),
        ({"DEVICE_ID": "gpu-3"}, None),
    ],
)
def test_device_id_names_a_worker_that_has_no_other_name(environ: dict[str, str], pod_id: str | None) -> None:
    assert translate(environ).get("RUNPOD_POD_ID") == pod_id


@pytest.mark.parametrize("prefix", ["rp", "waverless"])
def test_debugger_flag_is_accepted(prefix: str) -> None:
    assert parse_arguments([f"--{prefix}_debugger", "--rp_serve_api"], {}).serve_api


def test_port_flag_says_whether_it_was_given() -> None:
    assert not parse_arguments(["--rp_serve_api"], {}).is_port_given
    given = parse_arguments(["--waverless_api_port", "8000"], {"RUNPOD_WEBHOOK_GET_JOB": "https://x"})
    assert (given.is_port_given, given.api_port) == (True, 8000)


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts pytest's logging back afterwards."""
    root, worker = logging.getLogger(), logging.getLogger("worker")
    before = root.handlers[:], root.level, worker.level
    yield
    root.handlers[:], _, _ = before
    root.setLevel(before[1])
    worker.setLevel(before[2])


@pytest.mark.usefixtures("own_logging")
def test_log_is_json_on_a_platform(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogForm.JSON)
    logs.set_log_level("DEBUG")
    for level in ("debug", "info", "warn", "error"):
        getattr(log, level)(f"100% {level}", job_id="job-1")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["requestId"], line["message"], line["level"]) for line in lines] == [
        ("job-1", f"100% {level}", level.upper()) for level in ("debug", "info", "warn", "error")
    ]
    assert {line["source"] for line in lines} == {"handler"}


@pytest.mark.usefixtures("own_logging")
def test_log_is_readable_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogForm.TEXT)
    logs.set_log_level("INFO")
    log.debug("unseen")
    log.info("about a job", request_id="job-1")
    log.warn({"about": "none"})
    with_job, without = capsys.readouterr().err.splitlines()
    assert with_job.endswith("INFO    handler: job job-1: about a job")
    assert without.endswith("WARNING handler: {'about': 'none'}")


@pytest.mark.usefixtures("own_logging")
def test_log_before_start_is_not_lost(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "e")
    monkeypatch.setenv("RUNPOD_LOG_LEVEL", "warning")
    logging.getLogger().handlers.clear()
    log.info("unseen")
    log.error("loading the model")
    assert json.loads(capsys.readouterr().err)["message"] == "loading the model"


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({"RUNPOD_REALTIME_PORT": "9000"}, [], (True, "0.0.0.0", 9000, None)),
        ({"RUNPOD_REALTIME_PORT": "9000", "RUNPOD_REALTIME_CONCURRENCY": "4"}, [], (True, "0.0.0.0", 9000, 4)),
        ({"RUNPOD_REALTIME_PORT": "9000", "RUNPOD_WEBHOOK_GET_JOB": "https://x"}, [], (True, "0.0.0.0", 9000, None)),
        ({"RUNPOD_REALTIME_PORT": "0", "RUNPOD_WEBHOOK_GET_JOB": "https://x"}, [], (False, "127.0.0.1", 8000, None)),
        ({"RUNPOD_REALTIME_PORT": "9000"}, ["--rp_serve_api"], (True, "127.0.0.1", 8000, None)),
    ],
)
def test_realtime_port_asks_for_the_api(environ: dict[str, str], argv: list[str], expected: tuple[Any, ...]) -> None:
    arguments = parse_arguments(argv, environ)
    assert (arguments.serve_api, arguments.api_host, arguments.api_port, arguments.api_concurrency) == expected


@pytest.mark.parametrize("variable", ["RUNPOD_REALTIME_PORT", "RUNPOD_REALTIME_CONCURRENCY"])
@pytest.mark.parametrize("value", ["http", "-1", "70000.5"])
def test_realtime_variable_that_is_no_number_is_refused(
    variable: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments([], {"RUNPOD_REALTIME_PORT": "9000", variable: value})
    assert exit_.value.code == 2
    assert f"{variable}={value!r}: expected a " in capsys.readouterr().err
