"""The range of the model's token ids. The engine is asked for it once.

SGLang 0.5.23 does not check the ids of a prompt: one outside the vocabulary is looked up beyond the end of the
embedding, which kills the engine. It does check the ids that log probabilities are requested for, and its refusal names
the range.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re

import httpx

from gateway.errors import InvalidInputError
from gateway.request import TokenIds
from gateway.routes import GENERATE_PATH

log = logging.getLogger("worker.gateway")

# A request that SGLang refuses before it computes anything; no vocabulary is that large.
_QUESTION = {
    "input_ids": [0],
    "sampling_params": {"max_new_tokens": 1},
    "return_logprob": True,
    "token_ids_logprob": [2**31 - 1],
}
_RANGE = re.compile(r"valid range is \[0, (\d+)\)")
ASK_SECONDS = 10.0


class Vocabulary:
    """How many token ids there are; if the engine does not say, requests are not checked."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._size: int | None = None
        self._is_known = False
        self._asking = asyncio.Lock()

    async def check(self, ids: TokenIds) -> None:
        """Raises InvalidInputError for a prompt with an id that the model does not have."""
        if not self._is_known:
            async with self._asking:
                if not self._is_known:
                    await self._ask()
        wrong = ids.least if ids.least < 0 else ids.greatest
        if wrong < 0 or (self._size is not None and wrong >= self._size):
            valid = f"from 0 to {self._size - 1}" if self._size is not None else "0 or more"
            raise InvalidInputError(
                f"'{ids.field}' contains the token id {wrong}; valid ids are {valid}", param=ids.field
            )

    async def _ask(self) -> None:
        try:
            answer = await self._client.post(GENERATE_PATH, json=_QUESTION, timeout=ASK_SECONDS)
        except httpx.HTTPError:
            return  # asked again with the next request
        found = _RANGE.search(_message(answer.content))
        self._is_known, self._size = True, int(found[1]) if found else None
        if found is None:
            log.warning("this engine does not say how large its vocabulary is: token ids in prompts are not checked")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""
