"""The end of a process is noticed even if the kernel does not report it or /proc cannot be read."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from common.descriptors import lacks_descriptors
from sglang_engine import posix
from sglang_engine.guarded import GuardedProcess
from sglang_engine.posix import is_alive, wait_for_exit

pytestmark = pytest.mark.anyio

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def child() -> AsyncIterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP)  # noqa: ASYNC220
    yield process
    process.kill()
    process.wait()


def raising(error: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("error", [None, errno.EPERM, errno.ENOSYS, errno.EMFILE])
async def test_end_is_noticed_without_the_kernel_s_report(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    if error:
        monkeypatch.setattr(os, "pidfd_open", raising(error))
    waiting = asyncio.create_task(wait_for_exit(child.pid))
    done, _ = await asyncio.wait({waiting}, timeout=4 * posix.POLL_SECONDS)
    assert not done
    child.kill()
    assert await asyncio.wait_for(waiting, 10) == -signal.SIGKILL


async def test_process_is_not_taken_for_dead_while_proc_cannot_be_read(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", raising(errno.EMFILE))
        patch.setattr(Path, "read_text", raising(errno.EMFILE))
        waiting = asyncio.create_task(wait_for_exit(child.pid))
        done, _ = await asyncio.wait({waiting}, timeout=4 * posix.POLL_SECONDS)
        assert not done
        child.kill()
        child.wait()
        assert await asyncio.wait_for(waiting, 10) is None
    assert not is_alive(child.pid)


async def test_process_that_is_gone_already_is_not_waited_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])  # noqa: ASYNC220
    process.wait()
    assert await asyncio.wait_for(wait_for_exit(process.pid), 10) is None


@pytest.mark.parametrize(
    ("code", "ends_with"),
    [
        ("raise SystemExit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        (
            "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True); raise SystemExit(0)",
            0,
        ),
    ],
)
async def test_guard_tells_how_its_command_ended(tmp_path: Path, code: str, ends_with: int) -> None:
    process = await started(tmp_path, code)
    assert await asyncio.wait_for(process.wait(), 20) == ends_with
    await asyncio.wait_for(process.wait_for_all(), 20)


async def test_sigterm_goes_through_the_guard_to_the_command_alone(tmp_path: Path) -> None:
    process = await started(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    await until_written(tmp_path / "output", "up")
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == -signal.SIGTERM
    await asyncio.wait_for(process.wait_for_all(), 20)


STRAYS = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
for environment in (None, {}):
    print(subprocess.Popen(sleep, start_new_session=True, env=environment).pid, flush=True)
if not os.fork():
    os.setsid()
    if not os.fork():
        print(os.getpid(), flush=True)
        print("all", flush=True)
        time.sleep(600)
    os._exit(0)
"""


@pytest.mark.parametrize("way", ["it is killed", "it ends by itself"])
async def test_nothing_outlives_a_guarded_command(tmp_path: Path, way: str) -> None:
    process = await started(tmp_path, STRAYS + ("input()" if way == "it ends by itself" else "time.sleep(600)"))
    if way != "it ends by itself":  # input() finds the end of file at once
        await until_written(tmp_path / "output", "all")
        assert all(map(is_alive, pids_in(tmp_path / "output")))
        process.kill()
    await asyncio.wait_for(process.wait_for_all(), 20)
    pids = pids_in(tmp_path / "output")
    assert len(pids) >= 2
    assert not any(map(is_alive, [process.pid, *pids]))


async def started(folder: Path, code: str) -> GuardedProcess:
    with (folder / "output").open("wb") as output:
        return await GuardedProcess.start(
            [sys.executable, "-c", code], environ=dict(os.environ), output=output.fileno()
        )


async def until_written(path: Path, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in path.read_text():
            await asyncio.sleep(0.02)


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split() if line.isdigit()]


def test_lack_of_descriptors_is_recognised_through_other_errors() -> None:
    error = RuntimeError("cannot connect")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert lacks_descriptors(error)
    assert not lacks_descriptors(OSError(errno.ECONNREFUSED, "refused"))
