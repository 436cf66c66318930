"""Which paths of the engine a client may reach: plain paths only, and only the open ones among them.

A job's route becomes part of a URL. Anything that could lead that URL somewhere other than a path on the engine (a
scheme, a host, a query, an escape, a dot segment) is refused outright, so that what is checked is what is sent.
"""

from __future__ import annotations

import re

from common.addresses import is_plain_path
from gateway.errors import InvalidInputError, RouteNotAllowedError

CHAT_PATH = "/v1/chat/completions"
GENERATE_PATH = "/generate"

# What clients may use besides `/v1/…`: inference, and the read-only routes that they need. Everything else SGLang
# serves administers the engine (`/flush_cache`, `/update_weights_from_disk`) or prints its arguments (`/server_info`).
OPEN_ROUTES = frozenset(
    {
        GENERATE_PATH,
        "/encode",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/parse_function_call",
        "/separate_reasoning",
        "/model_info",
        "/get_model_info",
        "/health",
        "/ready",
        "/ping",
    }
)


# Routes under /v1 where SGLang 0.5.23 answers GETs (http_server.py); everything else there is a POST.
_GET_PATH = re.compile(r"/v1/(?:models(?:/.+)?|responses/[^/]+)")
_POST_WITHOUT_BODY = re.compile(r"/v1/responses/[^/]+/cancel")

# What may follow a path's question mark, https://www.rfc-editor.org/rfc/rfc3986#section-3.4.
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2}){0,4096}")

# The native routes that take a POST; the other open ones outside /v1 take a GET.
_NATIVE_POSTS = frozenset(
    {GENERATE_PATH, "/encode", "/classify", "/tokenize", "/detokenize", "/parse_function_call", "/separate_reasoning"}
)


def answers_get(path: str) -> bool:
    """Whether the engine answers GETs on an open path."""
    if path.startswith("/v1/"):
        return _GET_PATH.fullmatch(path) is not None
    return path not in _NATIVE_POSTS


def takes_post_without_body(path: str) -> bool:
    """Whether a request without a body must still be a POST."""
    return _POST_WITHOUT_BODY.fullmatch(path) is not None


def checked_query(query: object, *, field: str = "openai_query") -> str:
    """The query that a job's input gives in `field`, without its question mark; empty if there is none.

    Raises InvalidInputError for anything that is not a URL's query.
    """
    if query is None:
        return ""
    if not isinstance(query, str) or not _QUERY.fullmatch(query):
        raise InvalidInputError(f"'{field}' must be the query of a URL, such as 'limit=5'", param=field)
    return query


def open_path(route: object, allowed: frozenset[str] = frozenset(), *, field: str = "openai_route") -> str:
    """The path that a job's input names in `field`, with its leading slash; it is sent exactly as returned.

    `allowed` are exact paths that are open besides the usual ones. Raises InvalidInputError for anything but a plain
    path, RouteNotAllowedError for one that is not open.
    """
    if not isinstance(route, str) or not route:
        raise InvalidInputError(f"'{field}' must be a path such as '/v1/chat/completions', as a string", param=field)
    path = route if route.startswith("/") else f"/{route}"
    if not is_plain_path(path):
        raise InvalidInputError(
            f"'{field}' must be a plain path such as '/v1/chat/completions', not {_quote(route)}", param=field
        )
    if path not in OPEN_ROUTES and path not in allowed and not path.startswith("/v1/"):
        raise RouteNotAllowedError(
            f"the route {_quote(path)} is not open to clients; '/v1/…' and {', '.join(sorted(OPEN_ROUTES | allowed))} "
            "are (ALLOWED_ROUTES adds paths)",
            param=field,
        )
    return path


def _quote(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
