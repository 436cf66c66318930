"""Which platform this process runs on, according to its environment, and Waverless's variables under RunPod's names.

Waverless (WaveSpeed's platform) speaks RunPod's queue protocol, with differences: a job's output must be one JSON
object, sent once; there is no stop channel; its variables are called `WAVERLESS_*`. RunPod's SDK reads its own
variables when it is imported, so they are translated before that.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import StrEnum

from common.variables import WAVERLESS_VARIABLES


class PlatformName(StrEnum):
    """Where jobs come from."""

    RUNPOD = "RunPod"
    WAVERLESS = "Waverless"
    LOCAL = "this machine"

    @property
    def takes_streams(self) -> bool:
        """Whether it takes an output before a job is over."""
        return self is not PlatformName.WAVERLESS


# Waverless's variable -> the one that RunPod's SDK reads.
_TWINS = {
    name: "RUNPOD_AI_API_KEY" if name == "WAVERLESS_API_KEY" else name.replace("WAVERLESS_", "RUNPOD_")
    for name in WAVERLESS_VARIABLES
}

_POD_ID = "RUNPOD_POD_ID"
_POD_PLACEHOLDERS = ("$WAVERLESS_POD_ID", "$RUNPOD_POD_ID")


def detect(environ: Mapping[str, str]) -> PlatformName:
    """Waverless if its endpoint is named, RunPod if its endpoint or job queue is, else this machine.

    Waverless comes first: most of its pods have RunPod's variables set too.
    """
    if environ.get("WAVERLESS_ENDPOINT_ID"):
        return PlatformName.WAVERLESS
    if environ.get("RUNPOD_ENDPOINT_ID") or environ.get("RUNPOD_WEBHOOK_GET_JOB"):
        return PlatformName.RUNPOD
    return PlatformName.LOCAL


def translate(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set before RunPod's SDK is imported, so that it finds Waverless's; empty elsewhere.

    A pod without an id is named after `DEVICE_ID`, else after its endpoint plus a random part, as in Waverless's SDK.
    """
    if detect(environ) is not PlatformName.WAVERLESS:
        return {}
    pod_id = (
        environ.get("WAVERLESS_POD_ID")
        or environ.get(_POD_ID)
        or environ.get("DEVICE_ID")
        or f"{environ['WAVERLESS_ENDPOINT_ID']}-{secrets.token_hex(4)}"
    )
    values = {twin: environ.get(name) or environ.get(twin, "") for name, twin in _TWINS.items()}
    for name in (name for name in values if "_WEBHOOK_" in name and values[name]):
        for placeholder in _POD_PLACEHOLDERS:
            values[name] = values[name].replace(placeholder, pod_id)
        if "?" not in values[name]:
            values[name] += "?"  # the SDK adds its parameters with `&`
    return {name: value for name, value in values.items() if value} | {_POD_ID: pod_id}
