"""The worker's life: its start, its configuration, its log. How it ends is in test_stopping.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from local_runpod import JobState
from local_runpod.jobs import Job
from scripts.worker_process import Platform, running_worker, start_worker
from tests.waiting import until

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]


async def test_job_starts_within_half_a_second_of_a_warm_engine(platform: Platform) -> None:
    job = platform.queue.submit({"messages": HELLO})
    worker = await start_worker(platform, engine={"ready_after": 1})
    try:
        await job.finished(20)
        assert job.taken_at is not None
        taken_at = time.time() - (time.monotonic() - job.taken_at)
        assert taken_at - (await worker.ask_engine())["warm_at"] < 0.5
    finally:
        await worker.stop()


async def test_heartbeat_runs_while_the_engine_loads(platform: Platform) -> None:
    worker = await start_worker(platform, {"RUNPOD_POD_ID": "loading"}, engine={"ready_after": 60})
    try:
        await until(lambda: "loading" in platform.queue.pings)
    finally:
        assert await worker.stop() == 0


async def test_heartbeat_tells_of_the_jobs_in_progress(platform: Platform) -> None:
    async def until_it_tells_of(*jobs: Job) -> None:
        ids = ",".join(job.id for job in jobs)
        pings = platform.queue.pings  # none yet, where the first heartbeat is later than the first job
        await until(lambda: "telling" in pings and pings["telling"][-1].get("job_id", "") == ids)

    async with running_worker(platform, {"RUNPOD_POD_ID": "telling", "RUNPOD_PING_INTERVAL": "1000"}):
        job = platform.queue.submit({"messages": HELLO, "script": {"pause": 600}})
        await until_it_tells_of(job)
        platform.queue.cancel(job)
        await until_it_tells_of()


async def test_unfit_machine_ends_the_worker_before_the_engine_starts(platform: Platform) -> None:
    environment = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_MEMORY_GB": "1e6"}
    worker = await start_worker(platform, environment)
    assert await worker.exit_code() == 1
    assert "a fitness check of this machine failed" in worker.log
    assert "starting the engine" not in worker.log


@pytest.mark.parametrize(("code", "cause"), [(2, "an option that SGLang does not accept"), (7, "cause unknown")])
async def test_engine_that_exits_while_starting_ends_the_worker_at_once(
    platform: Platform, code: int, cause: str
) -> None:
    worker = await start_worker(platform, engine={"exit_code": code})
    assert await worker.exit_code() == 1
    [started_at] = worker.engine_starts()
    assert time.time() - started_at < 10
    assert f"while starting, the engine exited with code {code}" in worker.log
    assert cause in worker.log
    assert "Traceback" not in worker.log


async def test_engine_that_never_gets_ready_is_given_up(platform: Platform) -> None:
    worker = await start_worker(
        platform, {"STARTUP_TIMEOUT_SECONDS": "1.5"}, engine={"ready_after": 600, "ignore_sigterm": True}
    )
    assert await worker.exit_code() == 1
    assert "the engine was not ready after 1.5 s (STARTUP_TIMEOUT_SECONDS)" in worker.log


async def test_engine_on_a_taken_port_is_refused_at_once(platform: Platform) -> None:
    port = platform.base_url.rpartition(":")[2]
    worker = await start_worker(platform, {"PORT": port})
    assert await worker.exit_code() == 1
    assert f"port {port} is in use by another process" in worker.log


@pytest.mark.parametrize("slots", [1, 3])  # a single free slot asks /job-take, more ask /job-take-batch
async def test_more_jobs_than_slots_wait_for_their_turn(platform: Platform, slots: int) -> None:
    async with running_worker(platform, {"MAX_CONCURRENCY": str(slots)}) as worker:
        jobs = [platform.queue.submit({"messages": HELLO, "script": {"pause": 0.2}}) for _ in range(8)]
        for job in jobs:
            assert (await job.finished(20)).state is JobState.COMPLETED
        assert (await worker.ask_engine())["most_at_once"] == slots
        assert worker.process.returncode is None


async def test_log_names_no_prompt_no_answer_and_no_key(platform: Platform) -> None:
    async with running_worker(platform, {"API_KEY": "sk-engine-key", "HF_TOKEN": "hf-secret"}) as worker:
        script = {"text": "secret-answer "}
        for job_input in (
            {"messages": [{"role": "user", "content": "secret-prompt"}], "stream": True, "script": script},
            {"text": "secret-prompt", "script": {"status": 400, "body": '{"detail": "secret-prompt"}'}},
            {"messages": "secret-prompt"},
        ):
            await platform.answer(job_input)
        [last, *_] = reversed(await worker.engine_requests())
        assert last["headers"]["authorization"] == "Bearer sk-engine-key"
        for secret in ("secret-prompt", "secret-answer", "sk-engine-key", "hf-secret"):
            assert secret not in worker.log


async def test_bad_configuration_is_told_whole_and_ends_with_2(platform: Platform) -> None:
    worker = await start_worker(platform, {"MAX_CONCURRENCY": "many", "PORT": "http", "FAILED_START_SECONDS": "0"})
    assert await worker.exit_code() == 2
    assert "MAX_CONCURRENCY='many': expected a whole number of at least 1" in worker.log
    wrong = {"PORT": "http", "LOG_REQUESTS": "maybe", "MODEL_PATH": "a/b", "MODEL_NAME": "c/d"}
    worker = await start_worker(platform, wrong | {"FAILED_START_SECONDS": "0"})
    assert await worker.exit_code() == 2
    for problem in (
        "PORT='http': expected a whole number",
        "LOG_REQUESTS='maybe': expected true or false",
        "MODEL_PATH and MODEL_NAME both set --model-path",
    ):
        assert problem in worker.log
    assert "Traceback" not in worker.log


async def test_env_file_is_read_and_the_environment_wins(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SERVED_MODEL_NAME=from-file\nCONTEXT_LENGTH=4096\n")
    environment = {"SERVED_MODEL_NAME": "from-environment"}
    async with running_worker(platform, environment, folder=tmp_path) as worker:
        argv = (await worker.ask_engine())["argv"]
        assert argv[argv.index("--served-model-name") + 1] == "from-environment"
        assert argv[argv.index("--context-length") + 1] == "4096"


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="reads /proc, which only Linux has")
async def test_engine_leads_a_process_group_of_its_own(platform: Platform) -> None:
    async with running_worker(platform) as worker:
        [pid] = worker.engine_pids()
        assert os.getpgid(pid) == pid != os.getpgid(worker.process.pid)
