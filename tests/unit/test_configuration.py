"""The command line from the environment: a table over every kind of option, and every refusal at once."""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values

from common.settings import Concurrency, ConfigurationError
from common.variables import VARIABLES, read_variables
from engine import DEFAULTS, EXTRA_ARGS, OPTIONS, configure, plan
from gateway.settings import GatewaySettings, Limits
from serverless.settings import WorkerSettings
from sglang_engine.settings import EngineSettings

REPOSITORY = Path(__file__).parents[2]


def options_of(environ: dict[str, str]) -> dict[str, list[str]]:
    """The launch options as flag -> values."""
    found: dict[str, list[str]] = {}
    flag = ""
    for word in plan(environ).arguments:
        if word.startswith("--"):
            flag = word
            assert flag not in found, "no flag may be given twice"
            found[flag] = []
        else:
            found[flag].append(word)
    return found


def test_defaults_serve_glm_flash_with_its_parsers_and_eagle() -> None:
    assert options_of({}) == {
        "--model-path": ["zai-org/GLM-4.7-Flash"],
        "--served-model-name": ["glm-4.7-flash"],
        "--tool-call-parser": ["glm47"],
        "--reasoning-parser": ["glm45"],
        "--mem-fraction-static": ["0.9"],
        "--speculative-algorithm": ["EAGLE"],
        "--speculative-num-steps": ["3"],
        "--speculative-eagle-topk": ["1"],
        "--speculative-num-draft-tokens": ["4"],
        "--host": ["127.0.0.1"],
        "--port": ["30000"],
    }


def test_image_has_the_same_defaults_and_the_locked_packages() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    environment = dict(re.findall(r"^(?:ENV|   ) (\w+)=(\S+)", dockerfile, re.MULTILINE))
    assert environment.pop("HF_HOME") == "/runpod-volume/huggingface-cache"
    assert environment.pop("MODEL_REVISION") == "${MODEL_REVISION}"
    assert environment.pop("MODEL_NAME") == f"${{MODEL_NAME:-{DEFAULTS['MODEL_NAME']}}}"
    # Where something listens depends on the mode, so that the image leaves HOST and PORT alone.
    elsewhere = ("MODEL_NAME", "HOST", "PORT")
    assert environment == {name: value for name, value in DEFAULTS.items() if name not in elsewhere}
    lock = (REPOSITORY / "embedded" / "requirements.txt").read_text().splitlines()
    (pinned,) = re.findall(r'"([\w-]+==[\w.]+)"', dockerfile)
    assert pinned.startswith("runpod==")
    assert pinned in lock


def test_revision_of_the_image_goes_with_its_model_only() -> None:
    image = {"MODEL_NAME": "a/baked", "MODEL_REVISION": "v1"}
    assert "--revision" in plan(image, image).arguments
    for other in ({"MODEL_NAME": "b/other"}, {"PRESET": "rtx4090-awq"}):
        assert "--revision" not in plan(image | other, image).arguments
    assert "--revision" in plan(image | {"MODEL_NAME": "b/x", "REVISION": "v2"}, image).arguments


def test_example_file_sets_nothing_and_names_only_what_is_known() -> None:
    text = (REPOSITORY / ".env.example").read_text()
    assert {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value} == {}
    configure(dict.fromkeys(re.findall(r"^(\w+)=", text, re.MULTILINE), ""), {})
    named = set(re.findall(r"^#? ?([A-Z_]+)=", text, re.MULTILINE))
    elsewhere = {"RUNPOD_API_KEY", "ENDPOINT_ID", "RUNPOD_BASE_URL", "HF_TOKEN", "HF_HOME"}
    compose = {"GPU_COUNT", "BIND_ADDRESS", "API_PORT", "SGLANG_PORT", "ROUTER_PORT", "GRAFANA_PORT", "RESTART"}
    known = {*OPTIONS, *(variable.name for variable in VARIABLES), EXTRA_ARGS, "PRESET"}
    assert named - known == elsewhere | compose
    # An older name, and one that is set on the endpoint.
    assert {variable.name for variable in VARIABLES} - named == {"RUNPOD_DEBUG_LEVEL", "RUNPOD_INIT_TIMEOUT"}
    asked = set(re.findall(r"\$\{([A-Z_]+)", (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")))
    of_the_build = {"BASE_IMAGE", "PIP_EXTRA_INDEX_URL"}
    assert compose <= asked <= named | of_the_build
    # Each line as an example of itself: uncommented, all of it is valid, except that a preset and its model differ.
    examples = dotenv_values(stream=StringIO(re.sub(r"^# ([A-Z_]+=)", r"\1", text, flags=re.MULTILINE)))
    configure({name: value for name, value in examples.items() if value}, {})


def test_command_is_sglang_under_this_python() -> None:
    assert plan({}).command()[:3] == [sys.executable, "-m", "sglang.launch_server"]


@pytest.mark.parametrize(
    ("name", "value", "flag", "words"),
    [
        ("MODEL_NAME", "a/b", "--model-path", ["a/b"]),
        ("MODEL_PATH", "a/b", "--model-path", ["a/b"]),
        ("CONTEXT_LENGTH", "128k", "--context-length", ["128k"]),
        ("CONTEXT_LENGTH", "64Ki", "--context-length", ["64Ki"]),
        ("CONTEXT_LENGTH", "4096", "--context-length", ["4096"]),
        ("MEM_FRACTION_STATIC", " 0.8 ", "--mem-fraction-static", ["0.8"]),
        ("CHUNKED_PREFILL_SIZE", "-1", "--chunked-prefill-size", ["-1"]),
        ("TP_SIZE", "2", "--tp-size", ["2"]),
        ("TENSOR_PARALLEL_SIZE", "2", "--tensor-parallel-size", ["2"]),
        ("TRUST_REMOTE_CODE", "true", "--trust-remote-code", []),
        ("TRUST_REMOTE_CODE", "YES", "--trust-remote-code", []),
        ("TRUST_REMOTE_CODE", "1", "--trust-remote-code", []),
        ("TRUST_REMOTE_CODE", "on", "--trust-remote-code", []),
        ("LORA_PATHS", "a=/x 'b c=/y'", "--lora-paths", ["a=/x", "b c=/y"]),
        ("LORA_PATHS", '["a=/x", "b"]', "--lora-paths", ["a=/x", "b"]),
        ("JSON_MODEL_OVERRIDE_ARGS", '{"a": 1}', "--json-model-override-args", ['{"a": 1}']),
    ],
)
def test_option(name: str, value: str, flag: str, words: list[str]) -> None:
    assert options_of({name: value})[flag] == words


@pytest.mark.parametrize("value", ["false", "0", "no", "OFF", ""])
def test_flag_that_is_off_is_left_out(value: str) -> None:
    assert "--trust-remote-code" not in options_of({"TRUST_REMOTE_CODE": value})


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name not in ("MODEL_NAME", "HOST", "PORT")])
def test_empty_value_turns_a_default_off(name: str) -> None:
    assert OPTIONS[name].flag not in options_of({name: ""})


def test_turning_eagle_off_takes_its_numbers_along_but_keeps_what_is_given() -> None:
    off = options_of({"SPECULATIVE_ALGORITHM": ""})
    assert not [flag for flag in off if flag.startswith("--speculative")]
    other = options_of({"SPECULATIVE_ALGORITHM": "NGRAM", "SPECULATIVE_NUM_DRAFT_TOKENS": "8"})
    assert {f: w for f, w in other.items() if f.startswith("--speculative")} == {
        "--speculative-algorithm": ["NGRAM"],
        "--speculative-num-draft-tokens": ["8"],
    }


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"PORT": "http"}, "PORT='http': expected a whole number"),
        ({"MEM_FRACTION_STATIC": "most"}, "MEM_FRACTION_STATIC='most': expected a number"),
        ({"CONTEXT_LENGTH": "long"}, "CONTEXT_LENGTH='long': expected a whole number, or one with a unit"),
        ({"LOG_REQUESTS": "maybe"}, "LOG_REQUESTS='maybe': expected true or false"),
        ({"JSON_MODEL_OVERRIDE_ARGS": "{"}, "JSON_MODEL_OVERRIDE_ARGS='{': expected a JSON object"),
        ({"LORA_PATHS": "'a"}, 'LORA_PATHS="\'a": expected a list'),
        ({"TP_SIZE": "2", "TENSOR_PARALLEL_SIZE": "4"}, "TP_SIZE and TENSOR_PARALLEL_SIZE both set"),
        ({"MODEL_NAME": ""}, "MODEL_NAME is empty"),
        ({"HOST": ""}, "HOST is empty"),
        ({"PORT": ""}, "PORT is empty"),
    ],
)
def test_refused_value(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        plan(environ)
    [said] = error.value.problems
    assert said.startswith(problem)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as error:
        plan({"PORT": "a", "MODEL_NAME": "", "TP_SIZE": "b"})
    assert len(error.value.problems) == 3


def test_two_names_with_one_value_are_fine() -> None:
    assert options_of({"TP_SIZE": "2", "TENSOR_PARALLEL_SIZE": "2"})["--tp-size"] == ["2"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:30000"),
        ("0.0.0.0", "http://127.0.0.1:30000"),
        ("::", "http://[::1]:30000"),
        ("10.0.0.5", "http://10.0.0.5:30000"),
    ],
)
def test_where_the_engine_is_reached(host: str, url: str) -> None:
    assert plan({"HOST": host}).base_url == url


def test_served_name_is_the_model_s_where_none_is_given() -> None:
    assert plan({"SERVED_MODEL_NAME": ""}).served_model_name == "zai-org/GLM-4.7-Flash"


def test_key_is_used_but_never_shown() -> None:
    config = plan({"API_KEY": "sk-secret", "ADMIN_API_KEY": "sk-admin"})
    assert config.api_key == "sk-secret"
    assert {"sk-secret", "sk-admin"} <= set(config.command())
    assert "--api-key '***' --admin-api-key '***'" in config.shown_command()
    assert "sk-" not in config.shown_command()


def test_token_for_downloads_is_not_on_the_command_line() -> None:
    assert "hf_token" not in " ".join(plan({"HF_TOKEN": "hf_token"}).command())


def test_settings_have_defaults_and_take_numbers() -> None:
    worker, engine, gateway = settings_of({})
    assert (worker.max_concurrency, worker.shutdown_timeout_seconds) == (Concurrency(is_auto=True), 120)
    assert (engine.max_waiting_jobs, engine.max_restarts, engine.restart_window_seconds) == (1000, 3, 600)
    assert (engine.request_timeout_seconds, engine.startup_timeout_seconds) == (600, 1800)
    assert gateway.request_timeout_seconds == 600
    assert gateway.limits == Limits(request_bytes=20 * 1024 * 1024, json_depth=100, n=128)
    assert gateway.allowed_routes == frozenset()
    worker, engine, gateway = settings_of(
        {
            "MAX_CONCURRENCY": "8",
            "REQUEST_TIMEOUT_SECONDS": "1.5",
            "STARTUP_TIMEOUT_SECONDS": "",
            "ENGINE_MAX_RESTARTS": "0",
            "MAX_REQUEST_BYTES": "1000",
            "MAX_JSON_DEPTH": " 5 ",
            "MAX_N": "2",
            "ALLOWED_ROUTES": "/server_info, /flush_cache",
        }
    )
    assert worker.max_concurrency == Concurrency(is_auto=False, most=8)
    assert (engine.request_timeout_seconds, engine.startup_timeout_seconds) == (1.5, 1800)
    assert gateway.request_timeout_seconds == 1.5
    assert engine.max_restarts == 0
    assert gateway.limits == Limits(request_bytes=1000, json_depth=5, n=2)
    assert gateway.allowed_routes == {"/server_info", "/flush_cache"}


def settings_of(environ: dict[str, str]) -> tuple[WorkerSettings, EngineSettings, GatewaySettings]:
    """What each package reads from an environment."""
    return (
        WorkerSettings.from_environ(environ),
        EngineSettings.from_environ(environ),
        GatewaySettings.from_environ(environ),
    )


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_variables(
            {
                "MAX_JSON_DEPTH": "900",
                "ENGINE_MAX_RESTARTS": "-1",
                "MAX_N": "many",
                "ALLOWED_ROUTES": "http://evil.example/x",
            }
        )
    assert refused.value.problems == [
        "ENGINE_MAX_RESTARTS='-1': expected a whole number of at least 0",
        "MAX_JSON_DEPTH='900': expected a whole number from 1 to 250",
        "MAX_N='many': expected a whole number of at least 1",
        "ALLOWED_ROUTES='http://evil.example/x': expected plain paths such as /tokenize, separated by commas or spaces",
    ]


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({}, "INFO"),
        ({"RUNPOD_LOG_LEVEL": ""}, "INFO"),
        ({"RUNPOD_LOG_LEVEL": "error"}, "ERROR"),
        ({"RUNPOD_DEBUG_LEVEL": "DEBUG"}, "DEBUG"),
        ({"RUNPOD_LOG_LEVEL": "WARN", "RUNPOD_DEBUG_LEVEL": "DEBUG"}, "WARN"),
    ],
)
def test_log_level(environ: dict[str, str], level: str) -> None:
    assert WorkerSettings.from_environ(environ).log_level == level


def test_unknown_log_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="RUNPOD_LOG_LEVEL='loud': expected one of NOTSET"):
        read_variables({"RUNPOD_LOG_LEVEL": "loud"})


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "nan", "inf"])
def test_setting_that_is_no_count_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"MAX_CONCURRENCY=.*: expected a whole number of at least 1"):
        read_variables({"MAX_CONCURRENCY": value})


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf"])
def test_setting_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"REQUEST_TIMEOUT_SECONDS=.*: expected a number of seconds above 0"):
        read_variables({"REQUEST_TIMEOUT_SECONDS": value})
