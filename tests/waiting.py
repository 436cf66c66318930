"""Waiting for what should happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

ENOUGH_SECONDS = 30.0  # far above what anything here takes, on a busy machine too

START_SECONDS = 400.0  # of a real SGLang, which takes half a minute on an idle machine


async def until(is_true: Callable[[], object], seconds: float = ENOUGH_SECONDS) -> None:
    """Return as soon as it is true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.005)


async def turns_of_the_loop() -> None:
    """Let everything happen that can without waiting: what is in a socket is read, what is ready runs."""
    for _ in range(20):
        await asyncio.sleep(0)
