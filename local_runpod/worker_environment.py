"""The variables that make a worker of this platform."""

from __future__ import annotations


def worker_environment(base_url: str, *, endpoint_id: str = "local", worker_id: str = "local-worker") -> dict[str, str]:
    """The variables with which RunPod starts a worker of this endpoint, in the form seen on a deployed pod.

    `$ID` and `$RUNPOD_POD_ID` are literal: the SDK fills them in.
    """
    base = f"{base_url}/v2/{endpoint_id}"
    return {
        "RUNPOD_ENDPOINT_ID": endpoint_id,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": "local-runpod-key",
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=local",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
    }
