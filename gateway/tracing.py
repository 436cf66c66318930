"""Trace context that a job brings along, https://www.w3.org/TR/trace-context/: handed on to the engine.

Over HTTP it is a header. A job has none, so its input may have `metadata: {"traceparent": …}` beside the request, and
`tracestate` with it. SGLang's own tracing (ENABLE_TRACE, OTLP_TRACES_ENDPOINT) makes its spans children of that.
"""

from __future__ import annotations

import re
from typing import Any

# Version 00; a later one may have more parts, and version ff is invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[0-9a-f-]{0,64})?"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")

Headers = tuple[tuple[bytes, bytes], ...]


def take_trace(job_input: Any) -> tuple[Any, Headers]:
    """A job's input without its trace context, and that as headers.

    What is not a trace context is dropped, as the specification wants it: a broken trace is no reason to fail a job.
    """
    metadata = job_input.get("metadata") if isinstance(job_input, dict) else None
    if not isinstance(metadata, dict) or "traceparent" not in metadata:
        return job_input, ()
    rest = {key: value for key, value in metadata.items() if key not in ("traceparent", "tracestate")}
    job_input = {key: value for key, value in job_input.items() if key != "metadata"}
    if rest:
        job_input["metadata"] = rest
    parent, state = metadata["traceparent"], metadata.get("tracestate")
    if not isinstance(parent, str) or not _TRACEPARENT.fullmatch(parent):
        return job_input, ()
    headers = [(b"traceparent", parent.encode())]
    if isinstance(state, str) and _TRACESTATE.fullmatch(state):
        headers.append((b"tracestate", state.encode()))
    return job_input, tuple(headers)
