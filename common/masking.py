"""Keeping secrets out of everything that leaves the process: log, errors, `--print`.

A text is masked as a whole and cut afterwards, never the other way round: a mask cannot find half a secret, but half a
secret still leaks. `Mask.head` does both for a text, `LineMask` for a stream of bytes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from common.errors import JobError

MASK = "***"

# Variables that hold a secret, by the ends of their names: API_KEY, ADMIN_API_KEY, RUNPOD_AI_API_KEY, HF_TOKEN,
# HUGGING_FACE_HUB_TOKEN, AWS_SECRET_ACCESS_KEY, SSL_KEYFILE_PASSWORD, …
_SECRET_NAME = re.compile(r"(?:API_?KEY|TOKEN|SECRET|SECRET_KEY|ACCESS_KEY|PRIVATE_KEY|PASSWORD|PASSWD|CREDENTIALS)\Z")

# Shorter values are part of too many ordinary words to look for.
MIN_SECRET_CHARACTERS = 4
# In a secret of several lines (a PEM file, a JSON file of credentials), lines of this length or more count as secrets.
_MIN_LINE_CHARACTERS = 16
# A longer secret is searched for in pieces, so that the beginning of a text can be masked without reading all of it.
_MAX_PIECE_CHARACTERS = 1024
# Base64 of a few characters is a common word.
_MIN_BASE64_CHARACTERS = 8

# SGLang prints all its arguments when it starts, as a Python dict: `'api_key': 'abc'`. With the name next to it, even a
# short key is recognised.
_NAMED = re.compile(r"""(\b(?:(?:admin_)?api[_-]key|\w*password)['"]?\s*[=:]\s*)(?:'[^']*'|"[^"]*")""", re.IGNORECASE)
# A key in a URL, wherever it comes from: RunPod's webhooks, presigned URLs, a proxy's password.
_IN_QUERY = re.compile(
    r"([?&][\w.-]*(?:key|token|secret|password|sig|signature|credential)=)([^&#\s'\"<>]+)", re.IGNORECASE
)
_IN_ADDRESS = re.compile(r"(://[^/\s:@'\"]*:)([^/\s@'\"]+)(?=@)")


# The same, where name and value are a key of a JSON object and its value.
_NAME_OF_SHORT_KEY = re.compile(r"(?:admin_)?api[_-]key|\w*password", re.IGNORECASE)


def _is_short_key(name: str, value: object) -> bool:
    return isinstance(value, str) and _NAME_OF_SHORT_KEY.fullmatch(name) is not None


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret."""
    return _SECRET_NAME.search(name.upper()) is not None


class Mask:
    """Replaces secret values in texts: as they are, quoted for JSON, Python or a URL, and in Base64."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: frozenset[str] = frozenset()
        self._forms: tuple[str, ...] = ()
        self._values: re.Pattern[str] | None = None
        self.add(secrets)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Mask:
        """A mask for the environment's secrets: variables with a secret's name, and keys inside URLs."""
        mask = cls(value for name, value in environ.items() if is_secret_name(name))
        for value in environ.values():
            quoted = [found for pattern in (_IN_QUERY, _IN_ADDRESS) for _, found in pattern.findall(value)]
            mask.add([*quoted, *map(unquote, quoted)])
        return mask

    def add(self, secrets: Iterable[str]) -> None:
        """Add more secrets. Everyone who holds this mask masks them from now on, in any thread."""
        self._secrets |= {secret.strip() for secret in secrets}
        forms = {form for secret in self._secrets for piece in _pieces(secret) for form in _forms(piece)}
        # The longest first: one secret may be the beginning of another.
        self._forms = tuple(sorted(forms, key=len, reverse=True))
        self._values = re.compile("|".join(map(re.escape, self._forms))) if forms else None

    def __call__(self, text: str) -> str:
        """The text with every secret replaced."""
        # Looking for plain strings first is many times faster than the pattern, which almost no text needs.
        if self._values is not None and any(form in text for form in self._forms):
            text = self._values.sub(MASK, text)
        # The same for the patterns. Case folding, as IGNORECASE takes the Kelvin sign for a k and a long s for an s.
        folded = text.casefold()
        if "key" in folded or "password" in folded:
            text = _NAMED.sub(rf"\1{MASK}", text)
        if "?" in text or "&" in text:
            text = _IN_QUERY.sub(rf"\1{MASK}", text)
        return _IN_ADDRESS.sub(rf"\1{MASK}", text) if "@" in text else text

    def head(self, text: str, most: int) -> str:
        """The masked text, or its first `most` characters at most; it never ends with half a secret.

        The rest is not read, so a huge text costs no more than its beginning.
        """
        longest = max(map(len, self._forms), default=0)
        if len(text) <= most:
            return self(text)
        begun = self(text[: most + longest])
        return begun[: min(most, max(0, len(begun) - longest))]

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it masked. Raises RecursionError for one that nests without end."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(key): MASK if _is_short_key(key, inner) else self.value(inner) for key, inner in value.items()}
        return [self.value(inner) for inner in value] if isinstance(value, list) else value

    def error(self, error: JobError, *, most: int) -> None:
        """Mask every text of an error, and cut each to `most` characters."""
        for name, value in vars(error).items():
            if isinstance(value, str):
                setattr(error, name, self.head(value, most))


def _pieces(secret: str) -> Iterator[str]:
    """The parts of a secret to look for. It may have several lines, and a log is read line by line."""
    lines = secret.splitlines()
    least = MIN_SECRET_CHARACTERS if len(lines) == 1 else _MIN_LINE_CHARACTERS
    for line in (line.strip() for line in lines):
        for begin in range(0, len(line), _MAX_PIECE_CHARACTERS):
            piece = line[begin : begin + _MAX_PIECE_CHARACTERS]
            if len(piece) >= (_MIN_LINE_CHARACTERS if begin else least):
                yield piece


def _forms(secret: str) -> set[str]:
    """A secret in every form in which it may appear in a log, a URL or a header."""
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    in_small_letters = {re.sub("%..", lambda escape: escape[0].lower(), form) for form in quoted}
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    return {secret, *quoted, *in_small_letters, *escaped, *_base64_forms(secret.encode())}


def _base64_forms(secret: bytes) -> Iterator[str]:
    """In Base64, alone or inside something longer such as `user:secret`, without characters shared with the rest."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode().rstrip("=")
        # 6 bits a character: those that also hold bits from before or after the secret differ each time.
        begin, end = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        core = encoded[begin:end]
        whole = encoded if before == 0 else core
        for form in (core, whole):
            if len(form) >= _MIN_BASE64_CHARACTERS:
                yield form
                yield form.translate(_URL_SAFE)


_URL_SAFE = str.maketrans("+/", "-_")


class LineMask:
    """Masks a stream of bytes, line by line. Keeps no more than one line in memory, and only a bounded part of it."""

    # SGLang's longest line, its list of all arguments, has 20,000.
    MAX_LINE_BYTES = 64 * 1024

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._line = bytearray()  # the beginning of a line that has not ended yet
        self._left_out = 0  # how many of its bytes were dropped

    def feed(self, data: bytes) -> str:
        """The masked lines that end in this data. Progress bars end theirs with a carriage return."""
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        begun = ""
        if end and self._line:
            first = min(place for place in (data.find(b"\n"), data.find(b"\r")) if place >= 0)
            self._hold(data[:first])
            begun, data, end = self._ended(data[first : first + 1]), data[first + 1 :], end - first - 1
        self._hold(data[end:])
        return begun + self.masked(_decoded(data[:end])) if end else begun

    def rest(self) -> str:
        """What is left at the end, as a line."""
        return self._ended(b"\n") if self._line else ""

    def masked(self, lines: str) -> str:
        """Whole lines, masked."""
        return self._mask(lines)

    def masked_beginning(self, line: str, left_out_bytes: int) -> str:
        """The part that was kept of a line, masked, and a note on what was not. Half a secret may be at its end."""
        return f"{self._mask.head(line, len(line) - 1)}… (cut: {left_out_bytes} bytes more)\n"

    def _hold(self, data: bytes) -> None:
        room = self.MAX_LINE_BYTES - len(self._line)
        self._line += data[:room]
        self._left_out += len(data[room:])

    def _ended(self, end: bytes) -> str:
        """The line that was held, which ends with this character."""
        line, left_out = bytes(self._line), self._left_out
        self._line.clear()
        self._left_out = 0
        if not left_out:
            return self.masked(_decoded(line + end))
        return self.masked_beginning(_decoded(line), left_out)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")
