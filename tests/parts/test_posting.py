"""What is sent to RunPod along with a result, as its own SDK does it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

import aiohttp
import pytest

from common.helper_process import HelperProcess
from serverless.runpod import RunPodPlatform

pytestmark = pytest.mark.anyio


class Session:
    """Takes every post, and notes its address."""

    status = 200

    def __init__(self) -> None:
        self.addresses: list[str] = []

    def post(self, url: str, **_: Any) -> Session:
        self.addresses.append(url)
        return self

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, _: type | None, __: BaseException | None, ___: TracebackType | None) -> None:
        return None

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize("streams", [False, True])
async def test_result_is_of_a_stream_where_the_handler_is_a_generator(streams: bool) -> None:
    session = Session()
    platform = RunPodPlatform(cast(aiohttp.ClientSession, session), HelperProcess(), streams=streams)
    await platform.post_result({"id": "j"}, {"output": 1})
    await platform.post_output({"id": "j"}, 1)
    assert [address.rpartition("&")[2] for address in session.addresses] == [
        f"isStream={str(streams).lower()}",
        "isStream=false",
    ]
