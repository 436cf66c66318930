"""SGLang alone, in the foreground and in place of this process: what `python engine.py` runs."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.request
from functools import partial
from http import HTTPStatus
from typing import NoReturn

from common.masking import Mask
from common.tasks import cancel
from sglang_engine.errors import EngineError
from sglang_engine.hub import DownloadWatch
from sglang_engine.launch import Launch
from sglang_engine.port_claim import claim_port
from sglang_engine.posix import wait_for_exit


def serve(launch: Launch, mask: Mask) -> NoReturn:
    """Become SGLang: signals, the exit code and the terminal are its own. Exits with 1 if its port is taken."""
    try:
        os.set_inheritable(claim_port(launch).detach(), True)
    except EngineError as error:
        sys.exit(str(error))
    launch = launch.with_models_on_disk(os.environ)
    if (watch := launch.download_watch(os.environ)) is not None:
        _watch_download(watch)
    print(mask(f"starting the engine: {launch.shown_command()}"), file=sys.stderr, flush=True)
    os.execve(sys.executable, launch.command(), launch.child_environ(os.environ))  # noqa: S606


def is_healthy(launch: Launch) -> bool:
    """For a container's HEALTHCHECK: SGLang answers 200 on `/health` once it is warm. Prints why it is not ready."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{launch.base_url}/health", timeout=5) as answer:
            status: int = answer.status
    except OSError as error:
        print(f"the engine is not ready: {error}", file=sys.stderr)
        return False
    if status != HTTPStatus.OK:  # the worker's HTTP server says 204 while its engine starts
        print(f"the engine is not ready: {status}", file=sys.stderr)
    return status == HTTPStatus.OK


def _watch_download(watch: DownloadWatch) -> None:
    """Report the download's progress from a process that ends with it, or with this one.

    Forked twice, so that it is not a child of SGLang, which takes the place of this process and would never reap it.
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
