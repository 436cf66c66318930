"""What a browser gets: the page to try the API, the page's files, and Swagger's description of the API.

Everything comes from this server, so that both pages work without a network: the page's two libraries, markdown-it and
DOMPurify, are in `vendored` (`scripts/vendor` puts them there), Swagger's files in the package `fastapi_offline`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parent
PAGE, FAVICON, VENDORED = FOLDER / "page.html", FOLDER / "favicon.svg", FOLDER / "vendored"
SWAGGER = Path(fastapi_offline.__file__).with_name("static")


def add_pages(
    app: FastAPI, admit: Callable[[Request], Awaitable[None]], introduction: Mapping[str, Any] | None
) -> None:
    """Add the routes. The page and its files are open, what tells anything else is for those who are admitted.

    introduction: what the page says about the model, `{"text": …, "starters": [{"prompt": …, "settings": {…}}]}`.
    """
    html = PAGE.read_text(encoding="utf-8")
    page_headers = {
        "Content-Security-Policy": policy_of(html),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=page_headers)

    @app.get("/favicon.svg", include_in_schema=False)
    async def favicon() -> FileResponse:
        return FileResponse(FAVICON, media_type="image/svg+xml")

    @app.get("/introduction.json", include_in_schema=False, dependencies=[Depends(admit)])
    async def introduce() -> JSONResponse:
        return JSONResponse(introduction)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(admit)])
    async def schema() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False, dependencies=[Depends(admit)])
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/assets/swagger/swagger-ui-bundle.js",
            swagger_css_url="/assets/swagger/swagger-ui.css",
            swagger_favicon_url="/favicon.svg",
        )

    app.mount("/assets/swagger", StaticFiles(directory=SWAGGER))
    app.mount("/assets", StaticFiles(directory=VENDORED))


def policy_of(html: str) -> str:
    """The Content-Security-Policy of the page: its own script and style, this server's files, and nothing else.

    What a model writes could not run, load anything or call another host even if it got past the sanitiser.
    """
    script, style = (_hash_of(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src 'self' {script}; style-src {style}; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(html: str, tag: str) -> str:
    """The hash, as a policy names it, of the one element of this kind that has its text in the page."""
    [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
