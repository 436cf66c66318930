"""API mode: a local RunPod in this process, for the job loop of a deployed worker to work for."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from common.addresses import url_of
from common.web_server import serving
from local_runpod import JobQueue, create_app, worker_environment
from serverless.arguments import Arguments
from serverless.platform import Platform
from serverless.settings import WorkerSettings

log = logging.getLogger("worker.api")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@asynccontextmanager
async def local_platform(arguments: Arguments, settings: WorkerSettings) -> AsyncGenerator[Platform, None]:
    """Serve RunPod's API; gives the open connection to its queue, over loopback, as a deployed worker has it.

    Raises PortInUseError.
    """
    queue, worker_key = JobQueue(), secrets.token_urlsafe()
    app = create_app(queue, worker_key=worker_key, client_key=settings.local_api_key)
    if arguments.api_host not in _LOOPBACK and settings.local_api_key is None:
        log.warning("whoever reaches %s may use this worker; LOCAL_API_KEY asks for a key", arguments.api_host)
    async with serving(app, arguments.api_host, arguments.api_port) as port:
        url = url_of(arguments.api_host, port)
        variables = worker_environment(url, worker_key=worker_key)
        os.environ.update(variables)  # what the SDK reads when it is imported
        queue.ping(variables["RUNPOD_POD_ID"], {})
        log.info("a page to try it: %s/ - OpenAI's API: %s/openai/v1 - RunPod's API: %s/v2/local", url, url, url)
        from serverless.runpod import RunPodPlatform

        try:
            async with RunPodPlatform.connect() as connection:
                yield connection
        finally:
            queue.close()
