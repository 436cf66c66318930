"""API mode: a local RunPod in this process, served by the same job loop as a deployed worker's."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from common.addresses import url_of
from common.figures import engine_status, figures_now
from common.metrics_page import CONTENT_TYPE, page
from common.tasks import cancel
from common.web_server import serving
from local_runpod import Access, Health, JobQueue, Observed, Webhooks, create_app, worker_environment
from serverless import early_sdk
from serverless.arguments import Arguments
from serverless.platform import Platform
from serverless.service import Lifespan, Service
from serverless.settings import WorkerSettings

log = logging.getLogger("worker.api")

OBSERVED = Observed(engine_status, figures_now, page, CONTENT_TYPE)

STOPPING = "the worker is stopping; send this again to another worker, or a little later"


class Readiness:
    """Whether jobs are answered, for the health checks, which begin before the service does."""

    def __init__(self, lifespan: Lifespan) -> None:
        self._lifespan = lifespan
        self._service: Service | None = None
        self._is_over = False

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[Service, None]:
        """The lifespan, observed."""
        try:
            async with self._lifespan() as self._service:
                yield self._service
        finally:
            self._is_over = True

    def health(self) -> Health:
        """What `/ping` tells."""
        if self._is_over:
            return Health.NO_MORE
        return Health.READY if self._service is not None and self._service.is_ready() else Health.NOT_YET


@asynccontextmanager
async def local_platform(
    arguments: Arguments,
    settings: WorkerSettings,
    readiness: Readiness,
    stopping: asyncio.Event,
    *,
    is_stream: bool,
) -> AsyncGenerator[Platform, None]:
    """Serve RunPod's API; gives the open connection to its queue, over loopback, as a deployed worker has one.

    is_stream: whether jobs have several outputs. stopping: once set, no more jobs are accepted, and those that are
    waiting fail with `STOPPING`. Raises WebServerError (PortInUseError).
    """
    queue, worker_key = JobQueue(), secrets.token_urlsafe()
    # A platform's proxy calls by names of its own.
    listens_on = None if arguments.is_realtime else arguments.api_host
    access = Access(key=settings.local_api_key, listens_on=listens_on, origins=settings.cors_origins)
    webhooks = Webhooks(only_public=not access.on_loopback, hosts=settings.webhook_hosts)
    app = create_app(
        queue,
        worker_key=worker_key,
        access=access,
        webhooks=webhooks,
        health=lambda: Health.NO_MORE if stopping.is_set() else readiness.health(),
        observed=OBSERVED,
        introduction=settings.page_introduction,
    )
    if not access.on_loopback and access.key is None:
        log.warning("anyone who can reach %s may use this worker; set LOCAL_API_KEY", arguments.api_host)
    async with serving(
        app,
        arguments.api_host,
        arguments.api_port,
        port_setting="RUNPOD_REALTIME_PORT" if arguments.is_realtime else "--rp_api_port",
    ) as port:
        url = url_of(arguments.api_host, port)
        variables = worker_environment(url, worker_key=worker_key)
        os.environ.update(variables)  # the SDK reads them when it is imported
        early_sdk.catch_up(os.environ)
        queue.ping(variables["RUNPOD_POD_ID"], {})
        log.info("a page to try it: %s/ - OpenAI's API: %s/openai/v1 - RunPod's API: %s/v2/local", url, url, url)
        from serverless.runpod import RunPodPlatform

        draining = asyncio.create_task(_drain(queue, stopping), name="refusing jobs at the stop")
        try:
            async with RunPodPlatform.connect(streams=is_stream) as connection:
                yield connection
        finally:
            queue.close(STOPPING)
            await cancel(draining)


async def _drain(queue: JobQueue, stopping: asyncio.Event) -> None:
    await stopping.wait()
    queue.drain(STOPPING)
