"""Who may call: whoever shows the key, if one is set."""

from __future__ import annotations

from collections.abc import Mapping
from hmac import compare_digest

from common.errors import JobError

ANTHROPIC_PREFIX = "/v1/messages"


class KeyNeededError(JobError):
    """The request shows no key, or a wrong one."""

    code = 401


class Access:
    """The key that clients have to show; without one, everyone may call."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key else None

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises KeyNeededError for a request that may not be served."""
        if self._key is None:
            return
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        candidates = [shown.strip()] if scheme.lower() == b"bearer" else []
        is_anthropic = path.startswith(ANTHROPIC_PREFIX)
        if is_anthropic and b"x-api-key" in headers:
            candidates.append(headers[b"x-api-key"])
        if not any(compare_digest(candidate, self._key) for candidate in candidates):
            forms = "'Authorization: Bearer <API_KEY>'" + (" or 'x-api-key: <API_KEY>'" if is_anthropic else "")
            wrong = "the key is wrong" if any(candidates) else "a key is needed"
            raise KeyNeededError(f"{wrong}: send {forms}")
