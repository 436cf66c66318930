"""From a new endpoint to its first answer: ask for one, and tell what its workers do meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from common.tasks import cancel
from scripts.rest_v2 import USER_AGENT, ApiError, LogLine, RestV2

POLL_SECONDS = 3.0
TELL_SECONDS = 30.0  # between two lines when nothing changes
HOST_SECONDS = 20 * 60.0  # for RunPod to find a host and pull an image of 20 GB, beside the start itself
ANSWER_SECONDS = 330.0  # a load balancer's own limit
LAST_LINES = 20
LOG_SECONDS = 3.0  # a log that is not followed is over when this long nothing comes

MESSAGES = [{"role": "user", "content": "Say hello."}]
CHAT = {"messages": MESSAGES, "max_tokens": 64, "chat_template_kwargs": {"enable_thinking": False}}
# A load balancer without a worker, or with one that is not ready (https://docs.runpod.io/serverless/load-balancing).
NOT_YET = (204, 408, 429, 500, 502, 503, 504)

Say = Callable[[str], None]


class NoAnswerError(Exception):
    """There was no first answer; the message says why, in one line."""


@dataclass
class Watch:
    """What the workers of an endpoint do, told when it changes."""

    api: RestV2
    endpoint_id: str
    say: Say
    began: float = field(default_factory=time.monotonic)
    _told: str = ""
    _told_at: float = 0.0
    _unhealthy: set[str] = field(default_factory=set)

    async def look(self) -> None:
        """Ask once. Tells the last lines of a worker that has become unhealthy.

        An API that cannot be reached for a while is told of, and asked again the next time. Raises ApiError.
        """
        try:
            found = await self.api.workers(self.endpoint_id)
        except ApiError as error:
            if not error.may_pass:
                raise
            return self._tell(f"workers: not known now ({error})")
        self._tell(_summary(found))
        for worker in found["workers"]:
            if worker["status"] == "UNHEALTHY" and worker["id"] not in self._unhealthy:
                self._unhealthy.add(worker["id"])
                await tell_last_lines(self.api, self.endpoint_id, worker["id"], self.say)

    def _tell(self, line: str) -> None:
        """Say it if it is new, or after TELL_SECONDS."""
        now = time.monotonic()
        if line != self._told or now - self._told_at >= TELL_SECONDS:
            self._told, self._told_at = line, now
            self.say(f"{now - self.began:5.0f} s  {line}")


def _summary(found: Mapping[str, Any]) -> str:
    counts = found["summary"]
    names = ("running", "idle", "initializing", "throttled", "unhealthy")
    told = ", ".join(f"{counts[name]} {name}" for name in names if counts.get(name)) or "no worker yet"
    hosts = {f"{worker.get('gpuTypeId')} in {worker.get('dataCenterId')}" for worker in found["workers"]}
    if counts.get("throttled"):
        told += " (RunPod has no free GPU of this kind now)"
    return f"workers: {told}" + (f"; {', '.join(sorted(hosts))}" if hosts else "")


async def tell_last_lines(api: RestV2, endpoint_id: str, worker_id: str, say: Say) -> None:
    """The end of a worker's log, without following it."""
    say(f"the last lines of worker {worker_id}:")
    try:
        async with aclosing(api.log_lines(endpoint_id, worker_id, tail=LAST_LINES)) as lines:
            async for line in _until_quiet(lines):
                say(f"    {line.text}")
    except ApiError as error:
        say(f"    {error}")


async def _until_quiet(lines: AsyncGenerator[LogLine, None]) -> AsyncGenerator[LogLine, None]:
    """The first LAST_LINES lines at most; the stream itself goes on for as long as the worker lives."""
    with suppress(TimeoutError, StopAsyncIteration):
        for _ in range(LAST_LINES):
            yield await asyncio.wait_for(anext(lines), LOG_SECONDS)


async def first_answer(
    api: RestV2, endpoint: Mapping[str, Any], *, key: str, model: str, init_timeout_seconds: float, say: Say
) -> str:
    """Send a first request and return the text of its answer. Raises NoAnswerError and ApiError.

    Waits for a host, the image and the start for HOST_SECONDS and init_timeout_seconds together.
    """
    watch = Watch(api, endpoint["id"], say)
    seconds = HOST_SECONDS + init_timeout_seconds
    headers = {"Authorization": f"Bearer {key}", "User-Agent": USER_AGENT}
    urls = endpoint.get("requestUrls")
    if not urls:
        raise NoAnswerError("RunPod's answer does not say where the endpoint can be asked (requestUrls)")
    async with httpx.AsyncClient(headers=headers, timeout=30.0) as client:
        try:
            async with asyncio.timeout(seconds):
                if "run" in urls:
                    return await _by_queue(client, urls, watch)
                return await _by_http(client, urls["base"], model, watch)
        except TimeoutError as error:
            raise NoAnswerError(f"no answer within {seconds:.0f} s") from error
        except httpx.HTTPError as error:
            raise NoAnswerError(f"the endpoint cannot be reached: {type(error).__name__} {error}".strip()) from error


async def _by_queue(client: httpx.AsyncClient, urls: Mapping[str, str], watch: Watch) -> str:
    """Submit a job and poll it; cancel it if it is not waited for to the end."""
    submission = asyncio.create_task(client.post(urls["run"], json={"input": CHAT}))
    try:
        job = _object(await asyncio.shield(submission))
        if not job.get("id"):
            raise NoAnswerError(f"the endpoint took no job: {_why(job)}")
        watch.say(f"job {job['id']} is in the queue")
        while True:
            await watch.look()
            status = await _status(client, urls["status"].replace("{job_id}", job["id"]))
            if status.get("status") == "COMPLETED":
                return _text(status.get("output"))
            if status.get("status") in ("FAILED", "CANCELLED", "TIMED_OUT"):
                raise NoAnswerError(f"the first job ended as {status['status']}: {_why(status)}")
            await asyncio.sleep(POLL_SECONDS)
    except (asyncio.CancelledError, ApiError):
        # The job may be in the queue before its id is here.
        with suppress(httpx.HTTPError, KeyError):
            await client.post(urls["cancel"].replace("{job_id}", _object(await submission)["id"]))
        raise


async def _status(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """A job's status; empty if the API does not give it now; it will be asked for again."""
    with suppress(httpx.HTTPError, ValueError):
        answer = (await client.get(url)).json()
        return answer if isinstance(answer, dict) else {}
    return {}


async def _by_http(client: httpx.AsyncClient, base: str, model: str, watch: Watch) -> str:
    """Ask until a worker answers: the request itself is what has one started."""
    request = asyncio.create_task(_ask_over_http(client, f"{base}/v1/chat/completions", {"model": model, **CHAT}))
    try:
        while not request.done():
            await watch.look()
            await asyncio.wait({request}, timeout=POLL_SECONDS)
        return await request
    finally:
        await cancel(request)


async def _ask_over_http(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> str:
    while True:
        with suppress(httpx.TransportError):
            response = await client.post(url, json=body, timeout=ANSWER_SECONDS)
            if response.status_code == 200:
                return _text(_object(response))
            if response.status_code not in NOT_YET and "worker" not in response.text.lower():
                raise NoAnswerError(f"the endpoint answered {response.status_code}: {_why(_object(response))}")
        await asyncio.sleep(POLL_SECONDS)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": f"{response.status_code}, not a JSON object"}


def _why(answer: Mapping[str, Any]) -> str:
    error = answer.get("error") or answer.get("output") or answer.get("title") or "it did not say why"
    return " ".join(str(error).split())[:500]


def _text(output: Any) -> str:
    """The text of a chat's answer; the answer itself if it has another form."""
    answer = output[0] if isinstance(output, list) and output else output
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        return str(answer)[:500]


async def follow_logs(api: RestV2, endpoint_id: str, say: Say) -> None:
    """The logs of all workers, those that start later too, until this is cancelled. Raises ApiError."""
    followed: dict[str, asyncio.Task[None]] = {}
    say("following the workers' logs; Ctrl-C ends it")
    try:
        while True:
            try:
                there = {str(worker["id"]) for worker in (await api.workers(endpoint_id))["workers"]}
            except ApiError as error:
                if not error.may_pass:
                    raise
                say(f"the workers are not known now ({error})")
                there = set(followed)
            for worker_id in there - followed.keys():
                say(f"{worker_id} | is there")
                followed[worker_id] = asyncio.create_task(_follow_log(api, endpoint_id, worker_id, say))
            for worker_id in followed.keys() - there:
                say(f"{worker_id} | is gone")
                await cancel(followed.pop(worker_id))
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await cancel(*followed.values())


async def _follow_log(api: RestV2, endpoint_id: str, worker_id: str, say: Say) -> None:
    """One worker's log; a stream that ends is taken up again after its last line."""
    after = ""
    while True:
        try:
            async with aclosing(api.log_lines(endpoint_id, worker_id, tail=100, after=after)) as lines:
                async for line in lines:
                    after = line.event_id or after
                    say(f"{worker_id} | {line.text}")
        except ApiError as error:
            say(f"{worker_id} | {error}")
        await asyncio.sleep(POLL_SECONDS)
