"""RunPod's REST API v2, emulated as far as scripts/deploy uses it, with the real one's refusals written out.

What it refuses is what the API's schema and its descriptions say (https://api.runpod.io/v2/openapi.json).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

KEY = "rpa_0123456789"
ID = "4m7x2k9q"

# Type, pool, memory in GB, serverless price in USD an hour.
CARDS = [
    ("NVIDIA RTX A4500", "AMPERE_24", 20, 0.58),
    ("NVIDIA L4", "AMPERE_24", 24, 0.69),
    ("NVIDIA RTX A5000", "AMPERE_24", 24, 0.69),
    ("NVIDIA GeForce RTX 3090", "AMPERE_24", 24, 0.69),
    ("NVIDIA GeForce RTX 4090", "ADA_24", 24, 1.1),
    ("NVIDIA GeForce RTX 5090", "ADA_32_PRO", 32, 1.58),
    ("NVIDIA RTX A6000", "AMPERE_48", 48, 1.22),
    ("NVIDIA A40", "AMPERE_48", 48, 1.22),
    ("NVIDIA L40", "ADA_48_PRO", 48, 1.9),
    ("NVIDIA L40S", "ADA_48_PRO", 48, 1.9),
    ("NVIDIA RTX 6000 Ada Generation", "ADA_48_PRO", 48, 1.9),
    ("NVIDIA A100 80GB PCIe", "AMPERE_80", 80, 2.72),
    ("NVIDIA A100-SXM4-80GB", "AMPERE_80", 80, 2.72),
    ("NVIDIA H100 80GB HBM3", "ADA_80_PRO", 80, 4.18),
    ("NVIDIA H100 PCIe", "ADA_80_PRO", 80, 4.18),
    ("NVIDIA H100 NVL", "ADA_80_PRO", 94, 4.18),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "BLACKWELL_96", 96, 4.5),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb", None, 24, None),
    ("NVIDIA H200", "HOPPER_141", 141, 5.58),
    ("NVIDIA B200", "BLACKWELL_180", 180, 8.64),
    ("NVIDIA B300 SXM6 AC", "BLACKWELL_180", 288, 8.64),
    ("NVIDIA A30", None, 24, None),
]
POOLS = {pool for _, pool, _, _ in CARDS if pool}

CONTAINER = {"image", "args", "disk", "env", "ports", "registry"}
ENDPOINT = {"name", "scaling", "gpu", "cpu", "dataCenterIds", "flashboot", "networkVolumes", "templateId", "timeout"}
CREATE = CONTAINER | ENDPOINT | {"type", "workers"}
UPDATE = CONTAINER | ENDPOINT | {"workers"}
GPU = {"pools", "excludedTypes", "count", "allowedCudaVersions", "minCudaVersion"}
CUDA = r"\d+\.\d+"


def refusals(body: Any, *, endpoint: dict[str, Any] | None = None) -> list[str]:
    """What the API has against a body: of POST, or of PATCH to this endpoint. Empty if it takes it."""
    if not isinstance(body, dict):
        return ["$: an object is expected"]
    is_new, there = endpoint is None, endpoint or {}
    found = [f"$: additional properties '{name}' not allowed" for name in body.keys() - (CREATE if is_new else UPDATE)]
    if is_new:
        found += [f"$: missing property '{name}'" for name in ("name", "type", "scaling") if name not in body]
        if "image" not in body and "templateId" not in body:
            found.append("$: missing property 'image'")
        if ("gpu" in body) == ("cpu" in body):
            found.append("$: exactly one of gpu and cpu")
        if body.get("type") not in ("QUEUE", "LOAD_BALANCER"):
            found.append("$.type: QUEUE or LOAD_BALANCER")
    kind = there.get("type") or body.get("type")
    found += [text for name, check in _CHECKS.items() if name in body for text in check(body[name])]
    found += _against_gpu(body["gpu"], is_new) if "gpu" in body else []
    found += _against_both_cuda({**there.get("gpu", {}), **body.get("gpu", {})})
    found += _against_scaling(body["scaling"], kind) if "scaling" in body else []
    scaling = body.get("scaling") or there.get("scaling") or {}
    found += _against_workers(body["workers"], kind, scaling) if "workers" in body else []
    return found


def _is_count(value: Any, least: int = 1, most: int = 10**9) -> bool:
    return type(value) is int and least <= value <= most


def _texts(name: str, values: Any, pattern: str = ".*") -> Iterator[str]:
    if not isinstance(values, list) or not all(isinstance(v, str) and re.fullmatch(pattern, v) for v in values):
        yield f"$.{name}: an array of strings like {pattern}"


def _env(value: Any) -> Iterator[str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        yield "$.env: an object of strings"


def _flag(name: str, holds: Callable[[Any], bool]) -> Callable[[Any], Iterator[str]]:
    def check(value: Any) -> Iterator[str]:
        if not holds(value):
            yield f"$.{name}: {value!r} is not accepted"

    return check


_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "name": _flag("name", lambda v: isinstance(v, str) and bool(v)),
    "image": _flag("image", lambda v: isinstance(v, str)),
    "args": _flag("args", lambda v: isinstance(v, str)),
    "registry": _flag("registry", lambda v: v is None or isinstance(v, str)),
    "disk": _flag("disk", _is_count),
    "timeout": _flag("timeout", _is_count),
    "flashboot": _flag("flashboot", lambda v: v in ("OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT")),
    "env": _env,
    "ports": lambda v: _texts("ports", v, r"\d+/(http|tcp)"),
    "networkVolumes": lambda v: _texts("networkVolumes", v, r"\w+"),
    "dataCenterIds": lambda v: _texts("dataCenterIds", v),
}


def _against_gpu(gpu: dict[str, Any], is_new: bool) -> Iterator[str]:
    yield from (f"$.gpu: additional properties '{name}' not allowed" for name in gpu.keys() - GPU)
    pools = gpu.get("pools", [])
    if "pools" in gpu and not pools:
        yield "$.gpu.pools: at least one"
    if is_new and "pools" not in gpu:
        yield "$.gpu: missing property 'pools'"
    yield from (f"$.gpu.pools: unknown pool '{pool}'" for pool in pools if pool not in POOLS)
    if "excludedTypes" in gpu and "pools" not in gpu:
        yield "$.gpu.excludedTypes: only beside pools"
    types = {card for card, pool, _, _ in CARDS if pool in pools}
    yield from (f"$.gpu.excludedTypes: no '{t}' in those pools" for t in gpu.get("excludedTypes", []) if t not in types)
    if not _is_count(gpu.get("count", 1)):
        yield "$.gpu.count: at least 1"
    floor, exact = gpu.get("minCudaVersion"), gpu.get("allowedCudaVersions", [])
    if floor is not None and not re.fullmatch(CUDA if is_new else f"|{CUDA}", floor):
        yield "$.gpu.minCudaVersion: major.minor"
    yield from _texts("gpu.allowedCudaVersions", exact, CUDA)


def _against_both_cuda(gpu: dict[str, Any]) -> Iterator[str]:
    """Setting one does not clear the other: what an endpoint has counts too."""
    if gpu.get("minCudaVersion") and gpu.get("allowedCudaVersions"):
        yield "$.gpu: minCudaVersion and allowedCudaVersions exclude each other"


def _against_scaling(scaling: dict[str, Any], kind: str | None) -> Iterator[str]:
    value = {"QUEUE_DELAY": "queueDelay", "REQUEST_COUNT": "requestCount"}.get(str(scaling.get("type")))
    if value is None or scaling.keys() != {"type", value}:
        yield "$.scaling: type, and queueDelay or requestCount after it"
    elif kind == "LOAD_BALANCER" and value != "requestCount":
        yield "$.scaling: a load balancer scales by request count"
    elif value == "requestCount" and not _is_count(scaling[value]):
        yield "$.scaling.requestCount: a whole number from 1"
    elif value == "queueDelay" and not (isinstance(scaling[value], int | float) and scaling[value] >= 0.5):
        yield "$.scaling.queueDelay: at least 0.5"


def _against_workers(workers: dict[str, Any], kind: str | None, scaling: dict[str, Any]) -> Iterator[str]:
    yield from (f"$.workers: additional properties '{n}'" for n in workers.keys() - {"min", "max", "idleTimeout"})
    if not all(_is_count(workers.get(name, 0), 0) for name in ("min", "max")):
        yield "$.workers: whole numbers from 0"
    if "idleTimeout" in workers and not _is_count(workers["idleTimeout"], 1, 3600):
        yield "$.workers.idleTimeout: from 1 to 3600"
    if "idleTimeout" in workers and kind == "QUEUE" and scaling.get("type") == "REQUEST_COUNT":
        yield "$.workers.idleTimeout: not for queue endpoints that scale by request count"


@dataclass
class RestApi:
    """One account's state. The client's own paths (jobs, a load balancer) are served too."""

    base_url: str = ""
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of each request that changes something."""
    faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers, status and headers, to the next requests."""
    worker_states: list[str] = field(default_factory=lambda: ["INITIALIZING", "RUNNING"])
    """A worker's status, each time the workers are asked for; the last one stays."""
    job_states: list[dict[str, Any]] = field(default_factory=list)
    """A job's status, each time it is asked for; the last one stays."""
    http_answers: list[int] = field(default_factory=lambda: [200])
    log: list[str] = field(default_factory=lambda: ["Load weight begin", "The server is fired up"])
    log_asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    """`tail` and `Last-Event-ID` of each request for a log."""
    catalogue: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": card, "pool": pool, "memory": memory, "price": {"serverless": price} if price else {}}
            for card, pool, memory, price in CARDS
        ]
    )
    workers_are_there: bool = True
    cancelled: list[str] = field(default_factory=list)
    loses_answers: bool = False
    """Whether a POST is carried out and then answered with 502."""
    quotes: bool = False
    """Whether it refuses every body and says what was in it."""
    odd_answers: dict[str, Any] = field(default_factory=dict)
    """Path below the API's own -> what is answered in place of what belongs there."""

    def refusals_of(self, body: Any, *, endpoint: dict[str, Any] | None = None) -> list[str]:
        """Those of `refusals`, and one that quotes the body if it is that kind of API."""
        return [*refusals(body, endpoint=endpoint), *([f"$: not {json.dumps(body)}"] if self.quotes else [])]

    def add(self, body: dict[str, Any], endpoint_id: str = ID) -> dict[str, Any]:
        """An endpoint as it is after it was created."""
        endpoint = {"dataCenterIds": [], "networkVolumes": [], "registry": None, **body, "id": endpoint_id}
        base = f"{self.base_url}/v2/{endpoint_id}"
        names = {"run": "run", "runSync": "runsync", "status": "status/{job_id}", "stream": "stream/{job_id}"}
        names |= {"cancel": "cancel/{job_id}", "retry": "retry/{job_id}", "purgeQueue": "purge-queue"}
        urls = {name: f"{base}/{path}" for name, path in names.items()} | {"health": f"{base}/health"}
        balancer = {"base": f"{self.base_url}/lb", "health": f"{self.base_url}/lb/ping"}
        endpoint["requestUrls"] = urls if body["type"] == "QUEUE" else balancer
        endpoint["gpu"] = {"allowedCudaVersions": [], **body.get("gpu", {})}
        self.endpoints[endpoint_id] = endpoint
        return endpoint


def next_of(states: list[Any]) -> Any:
    """The first, until it is the last."""
    return states.pop(0) if len(states) > 1 else states[0]


def problem(status: int, title: str, detail: str, errors: list[str] | None = None) -> Response:
    """An answer of RFC 9457."""
    body = {"title": title, "status": status, "detail": detail, **({"errors": errors} if errors else {})}
    return JSONResponse(body, status, media_type="application/problem+json")


def create_app(api: RestApi) -> FastAPI:
    """The API, and what an endpoint's clients call, as an application."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return problem(401, "Unauthorized", "missing bearer token")
        if api.faults and request.url.path.startswith("/rest/"):
            status, headers = api.faults.pop(0)
            return Response("<html>", status, headers)
        if (path := request.url.path.removeprefix("/rest")) in api.odd_answers:
            return JSONResponse(api.odd_answers[path])
        body = await request.body()
        if request.method != "GET":
            api.requests.append((request.method, request.url.path, json.loads(body) if body else None))
        answer: Response = await call_next(request)
        return answer

    app.include_router(_endpoints(api), prefix="/rest")
    app.include_router(_workers(api), prefix="/rest/serverless/{endpoint_id}")
    app.include_router(_clients(api))
    return app


def _endpoints(api: RestApi) -> APIRouter:
    router = APIRouter()

    @router.get("/catalog/gpus")
    async def gpus() -> Any:
        return {"gpus": api.catalogue}

    @router.get("/serverless")
    async def endpoints() -> Any:
        return {"endpoints": list(api.endpoints.values())}

    @router.post("/serverless")
    async def create(request: Request) -> Response:
        body = await request.json()
        if found := api.refusals_of(body):
            return problem(422, "Unprocessable Entity", "Request validation failed.", found)
        endpoint = api.add(body)
        return problem(502, "Bad Gateway", "upstream") if api.loses_answers else JSONResponse(endpoint, 201)

    @router.api_route("/serverless/{endpoint_id}", methods=["GET", "PATCH", "DELETE"])
    async def one(endpoint_id: str, request: Request) -> Response:
        if (endpoint := api.endpoints.get(endpoint_id)) is None:
            return problem(404, "Not Found", "resource not found")
        if request.method == "DELETE":
            del api.endpoints[endpoint_id]
            return Response(status_code=204)
        if request.method == "PATCH":
            body = await request.json()
            if found := api.refusals_of(body, endpoint=endpoint):
                return problem(422, "Unprocessable Entity", "Request validation failed.", found)
            endpoint |= body
        return JSONResponse(endpoint)

    return router


def _workers(api: RestApi) -> APIRouter:
    router = APIRouter()

    @router.get("/workers")
    async def workers(endpoint_id: str) -> Any:
        names = ("RUNNING", "IDLE", "INITIALIZING", "THROTTLED", "UNHEALTHY")
        state = next_of(api.worker_states) if api.workers_are_there else None
        worker = {"id": "w1", "status": state, "isStale": False, "gpuCount": 1, "gpuTypeId": "NVIDIA H100 80GB HBM3"}
        summary = {name.lower(): int(name == state) for name in names} | {"total": int(state is not None)}
        return {"workers": [worker | {"dataCenterId": "US-KS-2"}] if state else [], "summary": summary}

    @router.get("/releases")
    async def releases(endpoint_id: str) -> Any:
        rollout = {"inProgress": True, "workersOnLatest": 1, "workersTotal": 2, "percentOnLatest": 50}
        return {"endpointVersion": 4, "rollout": rollout, "releases": []}

    @router.get("/workers/{worker_id}/logs")
    async def log(endpoint_id: str, worker_id: str, request: Request) -> Response:
        after = request.headers.get("last-event-id")
        api.log_asked.append((request.query_params.get("tail"), after))

        async def events() -> AsyncIterator[str]:
            for number, line in enumerate(api.log if after is None else []):
                entry = json.dumps({"ts": f"12:05:{number:02}", "source": "container", "line": line})
                yield f"id: {number}\ndata: {entry}\n\n"
            if after is None and "breaks off" not in api.log[-1]:
                await asyncio.Event().wait()

        return StreamingResponse(events(), media_type="text/event-stream")

    return router


def _clients(api: RestApi) -> APIRouter:
    router = APIRouter()

    @router.post("/v2/{endpoint_id}/run")
    async def run(endpoint_id: str) -> Any:
        return {"id": "job-1", "status": "IN_QUEUE"}

    @router.get("/v2/{endpoint_id}/status/{job_id}")
    async def job_status(endpoint_id: str, job_id: str) -> Any:
        return {"id": job_id, **next_of(api.job_states)}

    @router.post("/v2/{endpoint_id}/cancel/{job_id}")
    async def cancel(endpoint_id: str, job_id: str) -> Any:
        api.cancelled.append(job_id)
        return {"id": job_id, "status": "CANCELLED"}

    @router.post("/lb/v1/chat/completions")
    async def chat() -> Response:
        status = next_of(api.http_answers)
        if status == 200:
            return JSONResponse(ANSWER)
        return Response("" if status in (204, 401) else '{"error":"no workers available"}', status)

    return router


ANSWER = {"choices": [{"message": {"role": "assistant", "content": "Hello there."}}]}
