"""Health checks from the first moment of the program on, if it is going to serve HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from common.early_health import EarlyHealth
from common.settings import ConfigurationError
from gateway.http_server.settings import HttpSettings


def answer_early(argv: list[str], environ: Mapping[str, str]) -> EarlyHealth | None:
    """Start to answer health checks, if the command line or MODE asks for HTTP; else None.

    None too if a setting is wrong or a port is taken: what comes later says so.
    """
    in_http_mode = environ.get("MODE", "").strip().lower() == "http" and not _asks_for_another_mode(argv)
    if "--serve_http" not in argv and not in_http_mode:
        return None
    try:
        settings = HttpSettings.from_environ(environ)
        return EarlyHealth(settings.addresses, settings.health_paths).start()
    except (ConfigurationError, OSError):
        return None


def _asks_for_another_mode(argv: list[str]) -> bool:
    flags = {argument.partition("=")[0] for argument in argv}
    return bool(flags & {"--test_input", "--rp_serve_api", "--waverless_serve_api", "--help", "-h"})
