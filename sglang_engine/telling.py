"""What SGLang tells of itself while it serves: its load for the log's line of each minute, its own metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext

import httpx

from common.figures import Load, minute_lines
from common.metrics_page import with_page
from sglang_engine import loads
from sglang_engine.supervisor import State, Supervisor

LOADS_PATH = f"{loads.PATH},spec"
METRICS_PATH = "/metrics"
# Its families are called `sglang:…`; anything else on its page would be a second family of a name that ours has.
_OWN = ("sglang", "# HELP sglang", "# TYPE sglang")


class Telling:
    """Asks an engine. Its questions raise httpx.HTTPError, ValueError and the like if the answer is not as expected."""

    def __init__(self, client: httpx.AsyncClient, supervisor: Supervisor) -> None:
        self._client = client
        self._supervisor = supervisor

    @classmethod
    @asynccontextmanager
    async def of(
        cls, client: httpx.AsyncClient, supervisor: Supervisor, *, has_metrics: bool
    ) -> AsyncGenerator[Telling, None]:
        """Within this context, the log has each minute's figures, and `/metrics` the engine's, if it has any."""
        telling = cls(client, supervisor)
        with with_page(telling.metrics) if has_metrics else nullcontext():
            async with minute_lines(telling.load):
                yield telling

    async def load(self) -> Load:
        """The load of all its ranks; nothing known while it is down."""
        if self._supervisor.state is not State.READY:
            return Load()
        response = await self._client.get(LOADS_PATH)
        answer = response.raise_for_status().json()
        ranks = loads.parse_loads(answer)
        accepted = [rank["speculative"]["accept_length"] for rank in answer["loads"] if rank.get("speculative")]
        return Load(
            kv_usage=sum(rank.used for rank in ranks) / len(ranks),
            accept_length=sum(accepted) / len(accepted) if accepted else None,
            waiting=sum(rank.waiting for rank in ranks),
        )

    async def metrics(self) -> str:
        """Its metrics, as Prometheus reads them; none while it is down. ENABLE_METRICS turns them on."""
        if self._supervisor.state is not State.READY:
            return ""
        response = await self._client.get(METRICS_PATH)
        lines = response.raise_for_status().text.split("\n")
        return "".join(f"{line}\n" for line in lines if line.startswith(_OWN))
