"""Which paths of the engine a client may reach: plain paths only, and only the open ones among them.

A job's route becomes part of a URL. Anything that could lead that URL somewhere other than a path on the engine (a
scheme, a host, a query, an escape, a dot segment) is refused outright, so that what is checked is what is sent.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from common.addresses import is_plain_path
from gateway.errors import InvalidInputError, NoSuchRouteError, RouteNotAllowedError

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

# SGLang 0.5.23's other routes, and what begins like them (http_server.py): they administer the engine, print its
# arguments, or make it work for nobody.
_ADMINISTRATION = re.compile(
    r"/(?:abort_request|add_external_corpus|begin_weight_update|clear_hicache_storage_backend|close_session"
    r"|configure_logging|continue_generation|destroy_weights_update_group|dump_expert_distribution_record|dumper"
    r"|end_weight_update|flush_cache|freeze_gc|get_hicache_l3_cache_layout|get_internal_state|get_load|get_loads"
    r"|get_remote_instance_transfer_engine_info|get_server_info|get_weights_by_name|health_generate|hicache"
    r"|init_weights_send_group_for_remote_instance|init_weights_update_group|list_external_corpora"
    r"|load_lora_adapter|load_lora_adapter_from_tensors|open_session|pause_generation|pd_role_switch"
    r"|release_memory_occupation|remote_instance_transfer_engine_info|remove_external_corpus"
    r"|resume_memory_occupation|send_weights_to_remote_instance|server_info|set_internal_state|set_trace_level"
    r"|slow_down|start_expert_distribution_record|start_profile|stop_expert_distribution_record|stop_profile"
    r"|unload_lora_adapter|update_weight_version|update_weights_from_disk|update_weights_from_distributed"
    r"|update_weights_from_ipc|update_weights_from_tensor|weights_checker)(?:/.*)?"
)

# A model's name may hold characters that other paths may not: `org/model`, escaped or not, and `model:adapter`.
_MODEL_PATH = re.compile(r"/v1/models/(?:[A-Za-z0-9._~:@/-]|%[0-9A-Fa-f]{2})+")

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


def requested_path(path: str, allowed: frozenset[str] = frozenset()) -> str:
    """The path of a request over HTTP, which is sent exactly as it came, if clients may use it.

    Raises RouteNotAllowedError for a path that administers the engine, NoSuchRouteError for any other.
    """
    if path in OPEN_ROUTES or path in allowed or (path.startswith("/v1/") and is_plain_path(path)):
        return path
    if _MODEL_PATH.fullmatch(path) and is_safe_name(unquote_to_bytes(path.removeprefix("/v1/models/"))):
        return path
    if _ADMINISTRATION.fullmatch(path):
        raise RouteNotAllowedError(
            f"the route {_quote(path)} administers the engine and is not open to clients (ALLOWED_ROUTES can open it)"
        )
    raise NoSuchRouteError(f"there is no route {_quote(path)}")


def is_safe_name(name: bytes) -> bool:
    """Whether a decoded name has no part that could lead elsewhere: dot segments, empty ones, control characters."""
    parts = name.split(b"/")
    return not any(part in (b"", b".", b"..") for part in parts) and min(name) > 0x20 and b"\\" not in name


def _quote(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
