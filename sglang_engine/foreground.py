"""`python engine.py`: SGLang alone, in the foreground, as the environment configures it; or what that would be."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from dotenv import load_dotenv

from engine import (
    EXTRA_ARGS,
    OPTIONS,
    EngineConfig,
    Setting,
    child_environ,
    configure,
    masked,
    read_image_file,
    warnings_for,
)
from masking import Mask
from model_cache import DownloadWatch
from processes import wait_for_exit
from settings import VARIABLES, ConfigurationError
from tasks import cancel


def main() -> int:
    """Serve SGLang alone, in this process's place; or with `--print`, show what would be run."""
    parser = argparse.ArgumentParser(
        prog="python engine.py",
        description="Serve SGLang alone, in the foreground, as the environment configures it.",
        allow_abbrev=False,
    )
    parser.add_argument("--print", action="store_true", help="show the command line and every setting; start nothing")
    parser.add_argument(
        "--health", action="store_true", help="exit with 0 if the engine on this machine is ready, else 1"
    )
    arguments = parser.parse_args()
    load_dotenv(Path.cwd() / ".env")  # what the environment has already wins
    mask, image = Mask.from_environ(os.environ), read_image_file()
    for warning in warnings_for(os.environ) if not arguments.health else ():
        print(mask(f"warning: {warning}"), file=sys.stderr)
    try:
        config, _ = configure(os.environ, image)
    except ConfigurationError as error:
        for problem in error.problems:
            print(mask(problem), file=sys.stderr)
        return 2
    if arguments.health:
        return _health(config)
    if arguments.print:
        print(mask(_overview(config, os.environ, image)))
        return 0
    config = config.with_models_on_disk(os.environ)
    if (watch := config.download_watch(os.environ)) is not None:
        _watch_download(watch)
    print(mask(f"starting the engine: {config.shown_command()}"), file=sys.stderr, flush=True)
    # In this process's place: signals, the exit code and the terminal are SGLang's own.
    os.execve(sys.executable, config.command(), child_environ(os.environ, is_offline=config.is_offline))  # noqa: S606


def _health(config: EngineConfig) -> int:
    """For HEALTHCHECK: SGLang answers 200 on `/health` once it is warm."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{config.base_url}/health", timeout=5):
            return 0
    except OSError as error:
        print(f"the engine is not ready: {error}", file=sys.stderr)
        return 1


def _watch_download(watch: DownloadWatch) -> None:
    """Tell how the download gets on, from a process that ends with it, or with this one.

    Forked twice, so that it is no child of SGLang's, which takes this process's place and would not ask for its end.
    """
    if not hasattr(os, "pidfd_open"):
        return
    if child := os.fork():
        os.waitpid(child, 0)
        return
    engine_pid = os.getppid()
    if os.fork() == 0:
        asyncio.run(_tell_until_end(watch, engine_pid))
    os._exit(0)


async def _tell_until_end(watch: DownloadWatch, engine_pid: int) -> None:
    telling = asyncio.create_task(watch.tell(partial(print, file=sys.stderr, flush=True)))
    ended = asyncio.create_task(wait_for_exit(engine_pid))
    await asyncio.wait({telling, ended}, return_when=asyncio.FIRST_COMPLETED)
    await cancel(telling, ended)


def _overview(config: EngineConfig, environ: Mapping[str, str], image: Mapping[str, str]) -> str:
    """The command line, and every setting with where it came from."""
    rows = [
        (setting.name, _shown_setting(setting), setting.source)
        for setting in (*config.settings, *_other_settings(environ, image))
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [config.shown_command(), ""]
    lines += [f"{name:<{widths[0]}}  {value:<{min(widths[1], 60)}}  {source}" for name, value, source in rows]
    return "\n".join(lines)


def _shown_setting(setting: Setting) -> str:
    if setting.name == EXTRA_ARGS:
        return shlex.join(masked(shlex.split(setting.value)))
    option = OPTIONS.get(setting.name)
    return "***" if option is not None and option.is_secret else setting.value or "(off)"


def _other_settings(environ: Mapping[str, str], image: Mapping[str, str]) -> Iterator[Setting]:
    """What is no option of SGLang: the preset, the extra arguments, the worker's own variables."""
    defaults = {"PRESET": "", EXTRA_ARGS: ""} | {variable.name: variable.default for variable in VARIABLES}
    for name, default in defaults.items():
        value = environ.get(name, "").strip()
        if not value and not default:
            continue
        source = "default" if not value else "image" if image.get(name) == environ[name] else "environment"
        yield Setting(name, value or default, source)
