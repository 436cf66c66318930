"""Everything that touches RunPod's SDK; the only file that imports it.

Importing it reads most `RUNPOD_*` variables once and for all. These are the parts of the SDK's internals (runpod
1.12.0) that are used here; none of them is guaranteed to stay (tests/parts/test_sdk_pieces.py checks each):

runpod.http_client                           AsyncClientSession: the session with the worker's credentials
runpod.serverless.modules.rp_fitness         run_fitness_checks, _report_unhealthy
runpod.serverless.modules.rp_http            JOB_DONE_URL, JOB_STREAM_URL
runpod.serverless.modules.rp_job             _job_get_url, _job_stop_url
runpod.serverless.modules.rp_ping            Heartbeat.ping_loop, _mirror, _session
runpod.serverless.modules.worker_state       WORKER_ID, JobsProgress, PingJobMirror
runpod.version                               __version__
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import JOB_DONE_URL, JOB_STREAM_URL
from runpod.serverless.modules.rp_job import _job_get_url, _job_stop_url
from runpod.serverless.modules.worker_state import WORKER_ID, JobsProgress, PingJobMirror
from runpod.version import __version__ as VERSION

from common.helper_process import HelperError, HelperProcess
from common.large_json import LARGE_BYTES
from common.parent_death import die_with_parent
from serverless.early_sdk import route_progress
from serverless.encoding import NotJsonError, encode
from serverless.heartbeat import Heart
from serverless.platform import PlatformError
from serverless.polling import LONG_POLL_SECONDS
from serverless.posting import AddressError, Channel, Channels, Poster
from serverless.service import Job
from serverless.tolerant_json import parse_tolerantly, sift

__all__ = [
    "VERSION",
    "WORKER_ID",
    "RunPodPlatform",
    "is_machine_fit",
    "jobs_in_progress",
    "new_heart",
    "report_unhealthy",
]

# A poll's answer may take LONG_POLL_SECONDS to begin, and then has this long to finish: enough for twenty jobs of 20 MB
# at 55 Mbit/s.
BODY_SECONDS = 60.0
POLL_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=30.0)

# The heartbeat reports the jobs in progress every few seconds (rp_ping.py); it learns of changes after this delay. The
# SDK itself lists all jobs again whenever one begins or ends.
MIRROR_SECONDS = 0.1
_mirror = PingJobMirror()

route_progress()  # a handler may call the SDK's own function

# The SDK allows two seconds each for the connection and for the answer.
REPORT_SECONDS = 5.0

# As the SDK posts results (rp_http.py): JSON, with a form's content type.
POST_HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class RunPodPlatform:
    """RunPod's job queue, or another one that speaks its protocol. A `Platform`."""

    def __init__(self, session: aiohttp.ClientSession, poster: Poster, helper: HelperProcess, *, streams: bool) -> None:
        self._session = session
        self._poster = poster
        self._channels: dict[tuple[str, bool], Channels] = {}
        self._output_channels: dict[str, Channel] = {}  # of the jobs in progress that have sent an output
        self._helper = helper
        self._streams = streams
        self._progress = JobsProgress()
        self._mirroring: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def connect(cls, *, streams: bool = True) -> AsyncGenerator[RunPodPlatform, None]:
        """Open a session with the worker's credentials, for the length of this context.

        streams: whether jobs have outputs that are sent as they come; each result tells the platform so.
        """
        # No cookies are sent or kept.
        async with AsyncClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session, HelperProcess() as helper:
            with closing(Poster(session.headers)) as poster:
                yield cls(session, poster, helper, streams=streams)

    async def take(self, most: int) -> list[Any]:
        """One long poll. The SDK's own get_job would drop a whole batch because of one job that does not parse."""
        answer = await self._poll(_job_get_url(most))
        if answer is None or answer.status in (204, 400):  # 400: expected with FlashBoot, says the SDK
            return []
        if answer.status >= 300:
            raise PlatformError(f"the platform answered {answer.status}", answer.status)
        return await self._values(answer)

    async def stopped_jobs(self) -> list[str] | None:
        """One long poll of the stop channel, whose URL is derived from the take channel's; None if there is none."""
        url = _job_stop_url()
        if url is None:
            return None
        answer = await self._poll(url)
        if answer is None or answer.status == 204:
            return []
        if answer.status == 404:
            return None
        if answer.status >= 300:
            raise PlatformError(f"the platform answered {answer.status}", answer.status)
        told = await self._values(answer)
        job_ids = told[0].get("jobsToStop") if told and isinstance(told[0], dict) else None
        return [job_id for job_id in job_ids if isinstance(job_id, str)] if isinstance(job_ids, list) else []

    async def _poll(self, url: str) -> _Answer | None:
        """A GET whose answer may take a whole long poll to begin; None if it does not begin.

        An answer that has begun is read to its end, even if this is cancelled in the meantime: it may contain jobs,
        which the platform already counts as ours.
        """
        try:
            async with asyncio.timeout(LONG_POLL_SECONDS) as waiting:
                response = await self._session.get(url, allow_redirects=False, timeout=POLL_TIMEOUT)
        except TimeoutError:
            if waiting.expired():
                return None
            raise PlatformError("no answer (TimeoutError)") from None
        except aiohttp.ClientError as error:
            raise PlatformError(f"no answer ({type(error).__name__})") from error
        reading = asyncio.create_task(_read(response))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            return await reading  # bounded by BODY_SECONDS

    async def _values(self, answer: _Answer) -> list[Any]:
        """The elements of an answer's JSON array, or its one value; an empty list if there is nothing in it.

        Raises PlatformError for anything but JSON. A large answer is read in the helper process, job by job; if that
        fails, it is read here: jobs that were taken must not be lost.
        """
        try:
            if sum(map(len, answer.body)) >= LARGE_BYTES:
                with suppress(HelperError):
                    return [value async for value in self._helper.results(sift, answer.body)]
            body = b"".join(answer.body)
            value = await parse_tolerantly(body) if body.strip() else None
        except ValueError:
            raise PlatformError("the platform's answer is not JSON") from None
        return value if isinstance(value, list) else [value] if value else []

    async def post_output(self, job: Job, output: Any) -> None:
        """Post one streamed output."""
        job_id = job["id"]
        if (channel := self._output_channels.get(job_id)) is None:
            channel = self._output_channels[job_id] = self._channel(JOB_STREAM_URL, job, is_stream=False)
        await _post(channel, {"output": output})

    async def post_progress(self, job: Job, progress: Any) -> None:
        """Post a report of a job that goes on: to the channel of results, with a status, as rp_progress.py does."""
        channel = self._channel(JOB_DONE_URL, job, is_stream=False)
        await _post(channel, {"status": "IN_PROGRESS", "output": progress})

    async def post_result(self, job: Job, result: dict[str, Any]) -> None:
        """Post the end of a job."""
        # isStream: true for generators, in the SDK too
        await _post(self._channel(JOB_DONE_URL, job, is_stream=self._streams), result)

    def begun(self, job_id: str) -> None:
        """Count a job as in progress; the heartbeat and the take channel report the count."""
        self._progress.add(job_id)
        self._mirror_soon()

    def ended(self, job_id: str) -> None:
        """Stop counting it."""
        self._progress.remove(job_id)
        self._output_channels.pop(job_id, None)
        self._mirror_soon()

    def _mirror_soon(self) -> None:
        if self._mirroring is None:
            self._mirroring = asyncio.get_running_loop().call_later(MIRROR_SECONDS, self._mirror_now)

    def _mirror_now(self) -> None:
        self._mirroring = None
        _mirror.set(self._progress.get_job_list())

    def _channel(self, url: str, job: Job, *, is_stream: bool) -> Channel:
        """Where one kind of posts of one job goes. Raises PlatformError."""
        channels = self._channels.get((url, is_stream))
        if channels is None:
            try:
                channels = self._poster.channels(
                    f"{url}&isStream={str(is_stream).lower()}", headers=POST_HEADERS | {"X-Request-ID": "$ID"}
                )
            except AddressError as error:
                raise PlatformError(f"nothing can be posted to the platform's address: {error}") from error
            self._channels[url, is_stream] = channels
        return channels.of(quote(job["id"], safe=""))  # an id must not be able to change where a result goes


async def _post(channel: Channel, data: dict[str, Any]) -> None:
    try:
        status = await channel.post(encode(data))
    except NotJsonError as error:
        raise PlatformError(str(error), never=True) from None
    except (httpx.TransportError, TimeoutError) as error:
        raise PlatformError(f"no answer ({type(error).__name__})") from error
    if status >= 300:
        raise PlatformError(f"the platform answered {status}", status)


@dataclass(frozen=True)
class _Answer:
    """The answer to a poll."""

    status: int
    body: list[bytes]


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    """The whole answer. Raises PlatformError if it breaks off."""
    async with response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return _Answer(response.status, [piece async for piece in response.content.iter_any()])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PlatformError(f"the answer broke off ({type(error).__name__})") from error


def jobs_in_progress() -> int:
    """How many jobs are counted as in progress."""
    return len(JobsProgress())


def new_heart(environ: Mapping[str, str]) -> Heart:
    """A heart that pings the platform of this environment as the SDK does, and tells it of the jobs in progress."""
    return Heart(partial(_beat, _mirror), environ)


def _beat(mirror: Any, answered: Callable[[], None]) -> None:
    """In the heartbeat's own process: the SDK's loop of pings, which does not end. answered: called after each."""
    from runpod.serverless.modules.rp_ping import Heartbeat

    heartbeat = Heartbeat()
    heartbeat._mirror = mirror  # as its process_loop does
    heartbeat._session.hooks["response"].append(lambda *_, **__: answered())
    heartbeat.ping_loop()


def is_machine_fit() -> bool:
    """Run the SDK's checks of memory, disk, network and GPU.

    They run before the engine takes the GPU, because they expect it to be free, and in a separate process, because
    they load torch, open the GPU, and end the process they run in.
    """
    process = multiprocessing.Process(target=_run_fitness_checks, name="fitness-checks")
    process.start()
    process.join()
    return process.exitcode == 0


async def report_unhealthy(check: str, reason: str) -> None:
    """Tell the platform that this worker cannot work, as the SDK's fitness checks do: one GET of the ping URL.

    Takes REPORT_SECONDS at most. If the platform cannot be told, that changes nothing: the log has the reason too.
    """
    from runpod.serverless.modules.rp_fitness import _report_unhealthy

    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(_report_unhealthy, check, reason), REPORT_SECONDS)


def _run_fitness_checks() -> None:
    die_with_parent()  # the parent may be told to stop in the meantime
    from runpod.serverless.modules.rp_fitness import run_fitness_checks

    asyncio.run(run_fitness_checks())
