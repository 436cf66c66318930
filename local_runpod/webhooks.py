"""Finished jobs, posted to the address that their client gave.

If others can submit jobs, that address must be a public one: otherwise anyone who submits a job could make this machine
post to addresses that only it can reach. The address is checked when the job is submitted, and again on connecting,
since the name may resolve to something else by then. Where hosts are named, they are the only ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from socket import AF_UNSPEC, AddressFamily
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from local_runpod.jobs import Job, JobQueue, QueueFullError

log = logging.getLogger("local_runpod.webhooks")

# https://docs.runpod.io/serverless/endpoints/send-requests#webhook-notifications: two retries, 10 s apart.
TRIES = 3
PAUSE_SECONDS = 10.0
TIMEOUT_SECONDS = 10.0
CHECK_SECONDS = 5.0  # for resolving a name while its client waits
CLOSE_SECONDS = 5.0  # for posts that are in flight when the server ends

MOST_AT_ONCE = 50  # posts
MOST_UNDER_WAY = 3000  # jobs with a webhook, until it has been posted

_NAT64 = IPv6Network("64:ff9b::/96")


class UnwelcomeWebhookError(Exception):
    """A webhook that nothing may be posted to; the message says why."""


class Webhooks:
    """Posts finished jobs to their webhooks."""

    def __init__(
        self, pause_seconds: float = PAUSE_SECONDS, *, only_public: bool = False, hosts: Iterable[str] = ()
    ) -> None:
        """only_public: whether the address must be a public one. hosts: the only ones, public or not."""
        self._pause_seconds = pause_seconds
        self._hosts = frozenset(host.lower() for host in hosts)
        self._must_be_public = only_public and not self._hosts
        self._at_once = asyncio.Semaphore(MOST_AT_ONCE)
        self._under_way: dict[asyncio.Task[None], Job] = {}

    async def check(self, url: Any) -> None:
        """Raises UnwelcomeWebhookError for anything that may not be posted to."""
        host = _host_in(_parsed(url))
        if self._hosts and host not in self._hosts:
            raise UnwelcomeWebhookError('the host of "webhook" is not among those in WEBHOOK_HOSTS')
        if not self._must_be_public:
            return
        if (address := _address_in(host)) is not None:
            _check_public([address])
            return
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await _PublicResolver().resolve(host)
        except (OSError, UnicodeError, TimeoutError):
            raise UnwelcomeWebhookError('the host of "webhook" cannot be found') from None

    def check_room(self) -> None:
        """Raises QueueFullError while too many announcements are under way."""
        if len(self._under_way) >= MOST_UNDER_WAY:
            raise QueueFullError(f"{MOST_UNDER_WAY} webhooks are waiting for a job or an answer; try again later")

    def announce(self, queue: JobQueue, job: Job, url: str) -> None:
        """Post the job's report to this address, already checked, once the job is over."""
        task = asyncio.create_task(self._announce(queue, job, _parsed(url)))
        self._under_way[task] = job
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Give the posts of finished jobs a last moment, then give up the rest and log it."""
        if posting := [task for task, job in self._under_way.items() if job.state.is_final]:
            await asyncio.wait(posting, timeout=CLOSE_SECONDS)
        if left := list(self._under_way):
            log.warning("%d webhooks were not called: this server is stopping", len(left))
            for task in left:
                task.cancel()
            await asyncio.wait(left)

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._under_way.pop(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("job %s: its webhook could not be called: unexpected %s", job.id, type(error).__name__)

    async def _announce(self, queue: JobQueue, job: Job, url: URL) -> None:
        with queue.kept(job):
            await job.finished()
            for attempt in range(TRIES):
                await asyncio.sleep(self._pause_seconds if attempt else 0)
                async with self._at_once:
                    if await self._post(url, job):
                        return
        log.warning("job %s: its webhook did not take the result", job.id)

    async def _post(self, url: URL, job: Job) -> bool:
        connector = aiohttp.TCPConnector(resolver=_PublicResolver() if self._must_be_public else None)
        session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS))
        body, headers = json.dumps(job.report()), {"Content-Type": "application/json"}
        try:
            async with session, session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return 200 <= answer.status < 300
        except (aiohttp.ClientError, TimeoutError, UnicodeError, UnwelcomeWebhookError):
            return False


class _PublicResolver(aiohttp.ThreadedResolver):
    """Resolves names to public addresses only. aiohttp connects to what this returns, and to nothing else."""

    async def resolve(self, host: str, port: int = 0, family: AddressFamily | int = AF_UNSPEC) -> list[ResolveResult]:
        """All addresses of a host. Raises OSError, and UnwelcomeWebhookError if one is not public."""
        found = await super().resolve(host, port, family)  # type: ignore[arg-type]
        _check_public([ip_address(each["host"]) for each in found])
        return found


def _check_public(addresses: Iterable[IPv4Address | IPv6Address]) -> None:
    if not all(map(_is_public, addresses)):
        raise UnwelcomeWebhookError('"webhook" must have a public address; WEBHOOK_HOSTS can name others')


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        # An IPv4 address inside an IPv6 address is reached as the IPv4 address.
        if (inner := address.ipv4_mapped or address.sixtofour) is not None:
            return _is_public(inner)
        if address in _NAT64:
            return _is_public(IPv4Address(address.packed[-4:]))
    return address.is_global and not address.is_multicast


def _parsed(url: Any) -> URL:
    """The URL as aiohttp reads it, so that what is checked is what is called. Raises UnwelcomeWebhookError."""
    try:
        parsed = URL(url if isinstance(url, str) else "")
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise UnwelcomeWebhookError('"webhook" must be an http or https URL')
    return parsed


def _host_in(url: URL) -> str:
    return (url.raw_host or "").lower().rstrip(".")


def _address_in(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
