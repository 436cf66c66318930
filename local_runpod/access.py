"""Who may call: whoever has the key, if one is set; else anyone but other people's web pages.

A browser lets any page send requests to this machine, with a `text/plain` or form body without even asking. Such a
request carries the page's `Origin`, or says `Sec-Fetch-Site: cross-site`; both are checked. A page can also make its
own host name point here (DNS rebinding): then the `Host` is that name, so it is checked too. With a key, none of this
is needed, since no page knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from local_runpod.refusals import refusal

# Names that nobody can register on the internet, so no page can have one. The same goes for IP addresses and for names
# without a dot (a container's, a machine's).
_PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")
_PAGES = ("/", "/docs")  # links from anywhere may lead a browser here


@dataclass(frozen=True)
class Access:
    """Who may call.

    key: what clients must send; None if nothing. listens_on: the host name or address of the server; None if it is not
    known, and then the `Host` is not checked. origins: the web pages that may call, as `scheme://host:port`, or `*` for
    all of them.
    """

    key: str | None = None
    listens_on: str | None = None
    origins: frozenset[str] = frozenset()

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can call."""
        return self.listens_on is not None and is_loopback(self.listens_on)

    def shows_key(self, authorization: str) -> bool:
        """Whether an `Authorization` header, as Starlette gives it (Latin-1), has the key, with or without `Bearer`."""
        if self.key is None:
            return True
        scheme, _, rest = authorization.partition(" ")
        shown = (rest.strip() if scheme.lower() == "bearer" else authorization).encode("latin-1")
        forms = [self.key.encode()]
        if max(self.key) <= "\xff":  # beyond ASCII, curl sends the terminal's UTF-8, and a browser Latin-1
            forms.append(self.key.encode("latin-1"))
        return any(compare_digest(shown, form) for form in forms)

    def refusal_of(self, path: str, headers: Headers) -> str | None:
        """Why a request must not be served; None if it may be."""
        if self.key is not None:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        if not (self._is_known_host(host) or self._is_origin_host(host)):
            return (
                "this Host is not served without a key, since a web page could make its own name point here: "
                "use an address or localhost, set LOCAL_API_KEY, or name the origin in CORS_ORIGINS"
            )
        if origin is not None and not self._is_welcome(origin, host):
            return "pages of this Origin may not call this API; CORS_ORIGINS can allow them"
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if origin is None and foreign and not (path in _PAGES and headers.get("sec-fetch-mode") == "navigate"):
            return "other sites' pages may not call this API; CORS_ORIGINS can allow them"
        return None

    def _is_known_host(self, host: str) -> bool:
        if self.listens_on is None:
            return True
        name = _name_in(host)
        if self.on_loopback:
            return is_loopback(name)
        return _is_address(name) or "." not in name or name.endswith(_PRIVATE_SUFFIXES)

    def _is_origin_host(self, host: str) -> bool:
        return any(urlsplit(origin).netloc.lower() == host.lower() for origin in self.origins if origin != "*")

    def _is_welcome(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin.lower() in self.origins:
            return True
        return urlsplit(origin).netloc.lower() == host.lower() != ""  # this API's own page


class Gate:
    """ASGI middleware: answers 403 to what `Access` refuses."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "http" and (reason := self._access.refusal_of(scope["path"], Headers(scope=scope))):
            await refusal(scope["path"], 403, reason)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_loopback(name: str) -> bool:
    """Whether a host name or address is on loopback, reachable only from this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ip_address(name).is_loopback


def _name_in(host: str) -> str:
    """The name or address in a `Host` header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
