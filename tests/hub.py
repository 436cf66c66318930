"""Hugging Face's hub, as far as a download needs it: one model from a folder, under any name that it is given.

What it was asked is in `requests`: (method, path, Range header). `seconds_per_file` slows each file down; the file that
`holds_back` names is sent to its half, and no further until that is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECES = 20


@dataclass
class Hub:
    """One repository."""

    repository: str
    folder: Path
    seconds_per_file: float = 0.0
    holds_back: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def downloads(self) -> list[str]:
        """The names of the files whose contents were asked for, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.middleware("http")
        async def note(request: Request, call_next: Any) -> Any:
            self.requests.append((request.method, request.url.path, request.headers.get("range")))
            return await call_next(request)

        @app.get(f"/api/models/{self.repository}/tree/{{revision}}")
        async def tree(revision: str) -> list[dict[str, Any]]:
            return [self._entry(path) for path in self.files()]

        @app.get(f"/api/models/{self.repository}/revision/{{revision}}")
        @app.get(f"/api/models/{self.repository}")
        async def info(revision: str = "main") -> dict[str, Any]:
            siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in self.files()]
            return {"id": self.repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

        @app.api_route(f"/{self.repository}/resolve/{{revision}}/{{name}}", methods=["GET", "HEAD"])
        async def resolve(request: Request, name: str) -> Response:
            path = self.folder / name
            if not path.is_file():
                raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            size = path.stat().st_size
            if request.method == "HEAD":
                return Response(headers=headers | {"Content-Length": str(size)})
            begin = int((request.headers.get("range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers["Content-Length"] = str(size - begin)
            status = 206 if begin else 200
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
            return StreamingResponse(self._content(path, begin), status, headers=headers)

        return app

    def _entry(self, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _digest(path)}

    async def _content(self, path: Path, begin: int) -> AsyncIterator[bytes]:
        data = path.read_bytes()[begin:]
        step = max(1, len(data) // PIECES)
        for position in range(0, len(data), step):
            await asyncio.sleep(self.seconds_per_file / PIECES)
            while self.holds_back == path.name and position >= len(data) // 2:
                await asyncio.sleep(0.05)
            yield data[position : position + step]


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
