"""Where the HTTP server listens, by the environment; when it answers early; which paths it passes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.settings import ConfigurationError
from engine import plan
from gateway.errors import NoSuchRouteError, RouteNotAllowedError
from gateway.http_server import early
from gateway.http_server.settings import HttpSettings
from gateway.routes import OPEN_ROUTES, requested_path

RUNPOD = {"RUNPOD_ENDPOINT_ID": "abc"}


@pytest.mark.parametrize(
    ("environ", "host", "port", "health_port"),
    [
        ({}, "127.0.0.1", 8000, 8000),
        (RUNPOD, "0.0.0.0", 80, 80),
        ({"RUNPOD_POD_ID": "pod"}, "0.0.0.0", 80, 80),
        (RUNPOD | {"PORT": "5000", "PORT_HEALTH": "5001"}, "0.0.0.0", 5000, 5001),
        ({"HOST": "::", "PORT": "9"}, "::", 9, 9),
    ],
)
def test_address(environ: dict[str, str], host: str, port: int, health_port: int) -> None:
    settings = HttpSettings.from_environ(environ)
    assert (settings.host, settings.port, settings.health_port) == (host, port, health_port)
    assert len(settings.addresses) == len({port, health_port})


def test_engine_is_on_loopback_at_its_own_port() -> None:
    environ = RUNPOD | {"PORT": "80", "HOST": "0.0.0.0", "ENGINE_PORT": "31000"}
    launch = plan(HttpSettings.from_environ(environ).engine_environ(environ))
    assert (launch.host, launch.port) == ("127.0.0.1", 31000)


@pytest.mark.parametrize(
    ("environ", "at_terminal", "seconds"),
    [
        ({}, False, 60),
        ({}, True, 0),
        ({"FAILED_START_SECONDS": "9"}, True, 9),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True, 60),
        ({"RUNPOD_POD_ID": "pod"}, True, 60),
    ],
)
def test_who_sits_at_the_terminal_reads_why_a_start_failed(
    environ: dict[str, str], at_terminal: bool, seconds: float
) -> None:
    assert HttpSettings.from_environ(environ, at_terminal=at_terminal).failed_start_seconds == seconds
    readable = HttpSettings.of_the_readable(environ | {"ENGINE_PORT": "x"}, at_terminal=at_terminal)
    assert readable.failed_start_seconds == seconds


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        HttpSettings.from_environ({"PORT": "http", "ENGINE_PORT": "0", "HEALTH_CHECK_PATH": "/a/../b"})
    assert [problem.partition("=")[0] for problem in raised.value.problems] == [
        "PORT",
        "ENGINE_PORT",
        "HEALTH_CHECK_PATH",
    ]


@pytest.mark.parametrize("path", ["/", "/healthz", "/live/now"])
def test_health_checks_have_a_path_of_their_own(path: str) -> None:
    assert HttpSettings.from_environ({"HEALTH_CHECK_PATH": path}).health_paths == {"/health", "/ready", "/ping", path}


@pytest.mark.parametrize(("name", "value"), [("PORT", "30000"), ("PORT_HEALTH", "30000")])
def test_ports_differ(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"expected another port than {name}$"):
        HttpSettings.from_environ({name: value})


@pytest.mark.parametrize(
    ("argv", "environ", "asked"),
    [
        (["--serve_http"], {}, True),
        ([], {"MODE": " HTTP "}, True),
        ([], {}, False),
        ([], {"MODE": "queue"}, False),
        (["--rp_serve_api"], {"MODE": "http"}, False),
        (["--test_input={}"], {"MODE": "http"}, False),
        (["--help"], {"MODE": "http"}, False),
        (["--serve_http"], {"PORT": "http"}, False),
    ],
)
def test_answers_early_only_where_http_is_served(
    argv: list[str], environ: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    class Opened:
        def __init__(self, *arguments: Any) -> None:
            opened.append(arguments)

        def start(self) -> Opened:
            return self

    monkeypatch.setattr(early, "EarlyHealth", Opened)
    assert (early.answer_early(argv, environ) is not None) == asked
    assert len(opened) == asked


@pytest.mark.parametrize("key", ["schlüssel", "a\nb", " key", "key "])
def test_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="API_KEY: expected ASCII"):
        plan({"SGLANG_EXTRA_ARGS": f"--api-key '{key}'"})


@given(st.text(max_size=60) | st.from_regex(r"/(v1|flush_cache|generate)?[/.%a-z0-9\\]{0,20}", fullmatch=True))
def test_any_path_is_passed_on_as_it_is_or_refused(path: str) -> None:
    try:
        passed = requested_path(path)
    except (NoSuchRouteError, RouteNotAllowedError):
        return
    assert passed == path
    assert path in OPEN_ROUTES or path.startswith("/v1/")
    assert not {".", "..", ""} & set(path[1:].split("/"))
    assert not set(path) & set(" \\?#\r\n\0")
