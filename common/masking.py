"""Secrets, kept out of whatever is logged or returned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MASK = "***"

# Variables that hold a secret, by the last words of their names: API_KEY, ADMIN_API_KEY, RUNPOD_AI_API_KEY, HF_TOKEN,
# HUGGING_FACE_HUB_TOKEN, AWS_SECRET_ACCESS_KEY, SSL_KEYFILE_PASSWORD, …
_SECRET_NAME = re.compile(r"(?:API_?KEY|TOKEN|SECRET|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY|PASSWORD|PASSWD|CREDENTIALS)\Z")

# Shorter values are part of too many ordinary words to be looked for in a text.
MIN_SECRET_CHARACTERS = 4

# SGLang prints all its arguments when it starts, as a Python dict: `'api_key': 'abc'`. So named, even a short key is
# recognised.
_NAMED = re.compile(r"""(['"]?\b(?:admin_)?api[_-]key['"]?\s*[=:]\s*)(?:'[^']*'|"[^"]*")""", re.IGNORECASE)


class Mask:
    """Replaces secret values in texts."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS}
        # The longest first: one secret may be the beginning of another.
        words = [re.escape(secret) for secret in sorted(long_enough, key=len, reverse=True)]
        self._values = re.compile("|".join(words)) if words else None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Mask:
        """Every value of the environment whose variable's name says that it is a secret."""
        return cls(value.strip() for name, value in environ.items() if _SECRET_NAME.search(name.upper()))

    def __call__(self, text: str) -> str:
        """The text with every secret replaced."""
        if self._values is not None:
            text = self._values.sub(MASK, text)
        return _NAMED.sub(rf"\1{MASK}", text)
