"""The variables that connect a worker to this platform."""

from __future__ import annotations


def worker_environment(
    base_url: str, *, endpoint_id: str = "local", worker_id: str = "local-worker", worker_key: str | None = None
) -> dict[str, str]:
    """The variables with which RunPod starts a worker of this endpoint, in the form seen on a deployed pod.

    `$ID` and `$RUNPOD_POD_ID` are literal: the SDK fills them in. worker_key: the one given to `create_app`.
    """
    base = f"{base_url}/v2/{endpoint_id}"
    query = "?gpu=local" if worker_key is None else f"?gpu=local&key={worker_key}"
    return {
        "RUNPOD_ENDPOINT_ID": endpoint_id,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": "local-runpod-key",
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID{query}",
    }
