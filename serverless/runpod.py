"""Everything that touches RunPod's SDK; the only file that imports it.

Importing it reads most `RUNPOD_*` variables for good. What is used here of the SDK's inner modules (runpod 1.12.0),
none of it promised to stay (tests/unit/test_sdk_pieces.py looks at each):

runpod.http_client                           AsyncClientSession: the session with the worker's credentials
runpod.serverless.modules.rp_fitness         run_fitness_checks
runpod.serverless.modules.rp_http            JOB_DONE_URL, JOB_STREAM_URL
runpod.serverless.modules.rp_job             _job_get_url, _job_stop_url, get_stop_signals
runpod.serverless.modules.rp_ping            Heartbeat.process_loop
runpod.serverless.modules.worker_state       WORKER_ID, JobsProgress, PingJobMirror
runpod.serverless.utils.rp_validator         validate
runpod.version                               __version__
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import JOB_DONE_URL, JOB_STREAM_URL
from runpod.serverless.modules.rp_job import _job_get_url, _job_stop_url, get_stop_signals
from runpod.serverless.modules.worker_state import WORKER_ID, JobsProgress, PingJobMirror
from runpod.version import __version__ as VERSION

from common.parent_death import die_with_parent
from serverless.platform import PlatformError
from serverless.service import Job
from serverless.tolerant_json import parse_tolerantly

__all__ = [
    "VERSION",
    "WORKER_ID",
    "RunPodPlatform",
    "is_machine_fit",
    "jobs_in_progress",
    "start_heartbeat",
    "validate",
]

# The session's own limit is 600 s; a post that hangs is better tried again.
POST_TIMEOUT = aiohttp.ClientTimeout(60)

# The heartbeat tells of the jobs in progress every few seconds (rp_ping.py); it is told of changes after so long. The
# SDK itself lists all jobs anew whenever one begins or ends.
MIRROR_SECONDS = 0.1
_mirror = PingJobMirror()

# As the SDK posts results (rp_http.py): JSON, under a form's content type.
POST_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class RunPodPlatform:
    """RunPod's job queue, or one that speaks its protocol. A `Platform`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._progress = JobsProgress()
        self._mirroring: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def connect(cls) -> AsyncGenerator[RunPodPlatform, None]:
        """Open the session with the worker's credentials, for as long as this lasts."""
        async with AsyncClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:  # none are sent or kept
            yield cls(session)

    async def take(self, most: int) -> list[Job]:
        """One long poll. The SDK's own get_job would drop a whole batch for one job that does not parse."""
        try:
            async with self._session.get(_job_get_url(most)) as response:
                if response.status in (204, 400):  # 400: expected under FlashBoot, says the SDK
                    return []
                if response.status >= 300:
                    raise PlatformError(f"the platform answered {response.status}", response.status)
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PlatformError(f"no answer ({type(error).__name__})") from error
        if not body.strip():
            return []
        try:
            jobs = await parse_tolerantly(body)
        except ValueError:
            raise PlatformError("the platform's answer is not JSON") from None
        return jobs if isinstance(jobs, list) else [jobs]

    async def stopped_jobs(self) -> list[str] | None:
        """One long poll of the stop channel, whose address follows from the take channel's."""
        if _job_stop_url() is None:
            return None
        try:
            job_ids: list[str] = await get_stop_signals(self._session)
        except aiohttp.ClientError as error:
            status = getattr(error, "status", None)
            raise PlatformError(f"no answer ({type(error).__name__}, {status or 'no status'})", status) from error
        return job_ids

    async def post_output(self, job: Job, output: Any) -> None:
        """Post one streamed output."""
        await self._post(JOB_STREAM_URL, job, {"output": output}, is_stream=False)

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        """Post the end of a job."""
        await self._post(JOB_DONE_URL, job, result, is_stream=True)

    def begun(self, job_id: str) -> None:
        """Count a job as in progress, for the heartbeat and the take channel to report."""
        self._progress.add(job_id)
        self._mirror_soon()

    def ended(self, job_id: str) -> None:
        """Stop counting it."""
        self._progress.remove(job_id)
        self._mirror_soon()

    def _mirror_soon(self) -> None:
        if self._mirroring is None:
            self._mirroring = asyncio.get_running_loop().call_later(MIRROR_SECONDS, self._mirror_now)

    def _mirror_now(self) -> None:
        self._mirroring = None
        _mirror.set(self._progress.get_job_list())

    async def _post(self, url: str, job: Job, data: dict[str, Any], *, is_stream: bool) -> None:
        url = url.replace("$ID", job["id"]) + f"&isStream={str(is_stream).lower()}"
        headers = POST_HEADERS | {"X-Request-ID": job["id"]}
        try:
            async with self._session.post(
                url, data=aiohttp.BytesPayload(_encode(data)), headers=headers, timeout=POST_TIMEOUT
            ) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PlatformError(f"no answer ({type(error).__name__})") from error
        if response.status >= 300:
            raise PlatformError(f"the platform answered {response.status}", response.status)


def _encode(data: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError:  # half of a surrogate pair, a very long number, or not JSON at all
        pass
    try:
        return json.dumps(data).encode()
    except (TypeError, ValueError, RecursionError):
        raise PlatformError("it is not JSON", never=True) from None


def validate(raw_input: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The SDK's own validator: `{"validated_input": …}`, or `{"errors": [text, …]}`."""
    from runpod.serverless.utils.rp_validator import validate as validate_as_the_sdk

    answer: dict[str, Any] = validate_as_the_sdk(raw_input, schema)
    return answer


def jobs_in_progress() -> int:
    """How many jobs are counted as in progress."""
    return len(JobsProgress())


def start_heartbeat() -> None:
    """Report this worker alive to the platform, from a process of its own that ends with this one.

    The SDK's own start_ping would let the heart of a killed worker beat on.
    """
    if os.environ.get("RUNPOD_WEBHOOK_PING"):
        multiprocessing.Process(target=_beat, args=(_mirror,), name="heartbeat", daemon=True).start()


def _beat(mirror: Any) -> None:
    from runpod.serverless.modules.rp_ping import Heartbeat

    die_with_parent()
    Heartbeat.process_loop(mirror)


def is_machine_fit() -> bool:
    """Run the SDK's checks of memory, disk, network and GPU.

    They run before the engine takes the GPU, since they want to find it free, and in a process of their own, since
    they load torch and open the GPU, and end the process that they run in.
    """
    process = multiprocessing.Process(target=_run_fitness_checks, name="fitness-checks")
    process.start()
    process.join()
    return process.exitcode == 0


def _run_fitness_checks() -> None:
    from runpod.serverless.modules.rp_fitness import run_fitness_checks

    asyncio.run(run_fitness_checks())
