"""RunPod's SDK in a program that imports it itself, before `start`: handlers written for it do.

Importing the SDK reads most `RUNPOD_*` variables once and for all, so one that is imported early has not seen what a
worker sets: Waverless's values, the local API's addresses, the log level. And its `progress_update` posts from a thread
of its own, over its own connection, so that a report could arrive after the result. Both are put right here. Nothing is
imported: what is not there needs no change (runpod 1.12.0; tests/parts/test_sdk_pieces.py checks each name).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from serverless.progress import progress_update

_MODULES = "runpod.serverless.modules."


def catch_up(environ: Mapping[str, str]) -> None:
    """Give an SDK that is imported already what it would read in this environment now."""
    if (state := sys.modules.get(_MODULES + "worker_state")) is None:
        return
    worker_id = environ.get("RUNPOD_POD_ID") or state.WORKER_ID
    get_job = environ.get("RUNPOD_WEBHOOK_GET_JOB")
    done = environ.get("RUNPOD_WEBHOOK_POST_OUTPUT", "JOB_DONE_URL")
    stream = environ.get("RUNPOD_WEBHOOK_POST_STREAM", "JOB_STREAM_URL")
    _set("worker_state", WORKER_ID=worker_id, IS_LOCAL_TEST=get_job is None)
    _set("rp_job", WORKER_ID=worker_id, JOB_GET_URL=str(get_job).replace("$ID", worker_id))
    _set("rp_ping", WORKER_ID=worker_id)
    _set(
        "rp_http",
        WORKER_ID=worker_id,
        JOB_DONE_URL=done.replace("$RUNPOD_POD_ID", worker_id),
        JOB_STREAM_URL=stream.replace("$RUNPOD_POD_ID", worker_id),
    )
    if (level := environ.get("RUNPOD_LOG_LEVEL")) and (logger := sys.modules.get(_MODULES + "rp_logger")):
        logger.RunPodLogger.level = level.upper()
    route_progress()


def route_progress() -> None:
    """Have the SDK's `progress_update` report through the job loop, however the user's program has imported it.

    It starts a thread with a function of its module; both are looked up when it is called. So is its log, to which it
    writes each report at DEBUG, and the content of jobs does not belong there.
    """
    _set(
        "rp_progress",
        _thread_target=progress_update,
        threading=SimpleNamespace(Thread=_AtOnce),
        log=SimpleNamespace(debug=lambda _: None),
    )


class _AtOnce:
    """In place of a thread: calls the function where it is started, so that reports stay in order."""

    def __init__(self, *, target: Callable[..., Any], args: tuple[Any, ...], daemon: bool) -> None:
        self._target = target
        self._args = args

    def start(self) -> None:
        """Call it."""
        self._target(*self._args)


def _set(module: str, **values: Any) -> None:
    if (loaded := sys.modules.get(_MODULES + module)) is not None:
        for name, value in values.items():
            setattr(loaded, name, value)
