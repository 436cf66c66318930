"""The command line of a worker: which mode it runs in. The flags are those of RunPod's and Waverless's SDKs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from common.logs import LOG_LEVELS, LogForm, level_named, line_of
from serverless.service import Job

TEST_INPUT_FILE = "test_input.json"

EPILOG = f"""\
Which mode:
  --test_input JSON       answer this one job, print the answer, and exit
  --rp_serve_api          serve RunPod's API on this machine, with the job loop of a deployed worker behind it
  --serve_http            serve the engine's API over plain HTTP, without a queue; MODE=http means the same
  RUNPOD_REALTIME_PORT    in the environment: the same on that port, as a platform asks for it
  none of them            run as a worker if the environment names a job queue (RUNPOD_WEBHOOK_GET_JOB or
                          WAVERLESS_WEBHOOK_GET_JOB); else answer the job in {TEST_INPUT_FILE}

The settings are environment variables; docs/configuration.md lists them.
"""


@dataclass(frozen=True)
class Arguments:
    """The command line.

    test_job: the job of local mode. serve_api: whether to serve the API, on `api_host` and `api_port`, with up to
    `api_concurrency` jobs at once (None: as deployed). serve_http: whether to serve HTTP without a queue. Else: a
    worker. log_level: None if the flag is not given.
    """

    test_job: Job | None = None
    serve_api: bool = False
    serve_http: bool = False
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    api_concurrency: int | None = None
    log_level: str | None = None
    is_port_given: bool = field(default=False, compare=False)
    """Whether `api_port` is the flag's."""
    is_realtime: bool = field(default=False, compare=False)
    """Whether the API is served because the platform asks for it: RUNPOD_REALTIME_PORT."""


def parse_arguments(argv: list[str], environ: Mapping[str, str], *, form: LogForm = LogForm.TEXT) -> Arguments:
    """Read the command line; if neither it nor the environment names a source of jobs, use `test_input.json`.

    A flag that names a mode wins over the variable MODE. Exits with code 2 and one line, in this form, for an unknown
    flag or MODE, for bad JSON, or if there is no job at all.
    """
    parser = _parser(form)
    given = parser.parse_args(argv)
    modes = [f"--{name}" for name in ("test_input", "rp_serve_api", "serve_http") if getattr(given, name)]
    if len(modes) > 1:
        parser.error(f"{' and '.join(modes)} are different modes: give only one of them")
    mode = environ.get("MODE", "").strip().lower()
    if mode not in ("", "queue", "http"):
        parser.error(f"MODE={mode!r}: expected queue or http")
    arguments = Arguments(
        serve_api=given.rp_serve_api,
        serve_http=given.serve_http or (mode == "http" and not modes),
        api_host=given.rp_api_host,
        api_port=Arguments.api_port if given.rp_api_port is None else given.rp_api_port,
        is_port_given=given.rp_api_port is not None,
        api_concurrency=given.rp_api_concurrency,
        log_level=given.rp_log_level,
    )
    if not modes and not arguments.serve_http and (port := _from_variable(parser, environ, "PORT", _port)):
        concurrency = arguments.api_concurrency or _from_variable(parser, environ, "CONCURRENCY", _count)
        return replace(
            arguments,
            serve_api=True,
            api_host="0.0.0.0",
            api_port=port,
            api_concurrency=concurrency,
            is_realtime=True,
        )
    if given.test_input is not None:
        return replace(arguments, test_job=_test_job(parser, "--test_input", given.test_input))
    if arguments.serve_api or arguments.serve_http or environ.get("RUNPOD_WEBHOOK_GET_JOB"):
        return arguments
    if mode == "queue":
        parser.error("MODE=queue, but no job queue is named: a platform sets RUNPOD_WEBHOOK_GET_JOB")
    try:
        text = Path(TEST_INPUT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        parser.error(
            f"no job: give one with --test_input or in {TEST_INPUT_FILE}, serve an API with --rp_serve_api, or set "
            "RUNPOD_WEBHOOK_GET_JOB as a platform does"
        )
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{TEST_INPUT_FILE} cannot be read: {type(error).__name__}")
    return replace(arguments, test_job=_test_job(parser, TEST_INPUT_FILE, text))


def _from_variable(
    parser: argparse.ArgumentParser, environ: Mapping[str, str], name: str, parse: Callable[[str], int]
) -> int | None:
    """A variable of the SDK's realtime API (runpod 1.12.0, serverless/__init__.py); None if it is not set."""
    text = environ.get(f"RUNPOD_REALTIME_{name}", "").strip()
    if not text:
        return None
    try:
        return parse(text)
    except (ValueError, argparse.ArgumentTypeError):
        parser.error(f"RUNPOD_REALTIME_{name}={text!r}: expected a {parse.__name__}")


class _Parser(argparse.ArgumentParser):
    form = LogForm.TEXT

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: {message} (--help lists what is accepted)"
        line = line_of(LogForm.JSON, text, level="ERROR") if self.form is LogForm.JSON else text
        self.exit(2, f"{line}\n")


def _parser(form: LogForm) -> argparse.ArgumentParser:
    parser = _Parser(
        description="A serverless worker: takes jobs from RunPod or Waverless, serves their API locally, or answers "
        "one job.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.form = form
    parser.add_argument("--test_input", metavar="JSON", help='the job of local mode, {"input": …}')
    both = _both_names
    parser.add_argument(*both("serve_api"), action="store_true", help="serve the API on this machine")
    parser.add_argument("--serve_http", action="store_true", help="serve HTTP without a queue, on HOST and PORT")
    parser.add_argument(*both("api_host"), default=Arguments.api_host, metavar="HOST", help="the address: %(default)s")
    parser.add_argument(
        *both("api_port"),
        type=_port,
        metavar="PORT",
        help=f"the port: {Arguments.api_port}; of a worker on Waverless, the port of GET /health",
    )
    parser.add_argument(
        *both("api_concurrency"), type=_count, metavar="N", help="jobs at once in API mode; default: as deployed"
    )
    parser.add_argument(*both("log_level"), type=_level, metavar="LEVEL", help=f"one of {', '.join(LOG_LEVELS)}")
    parser.add_argument(*both("debugger"), action="store_true", help="accepted, as the SDKs do; changes nothing")
    return parser


def _both_names(flag: str) -> tuple[str, str]:
    return f"--rp_{flag}", f"--waverless_{flag}"


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: expected 0 (any free one) to 65535")
    return port


def _level(text: str) -> str:
    try:
        return level_named(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(LOG_LEVELS)})") from None


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return count


# argparse uses the function's name as the name of the type.
_port.__name__ = "port"
_count.__name__ = "whole number"


def _test_job(parser: argparse.ArgumentParser, source: str, text: str) -> Job:
    try:
        job: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        parser.error(f"{source} is not valid JSON: {error}")
    if not isinstance(job, dict) or "input" not in job:
        parser.error(f'{source} must be an object with an "input", as in {{"input": {{"messages": […]}}}}')
    return {"id": "local_test", **job}
