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
_PING_INTERVAL = "RUNPOD_PING_INTERVAL"
# The SDK's default, and what takes the place of nonsense. Waverless gives a worker up after 60 to 90 s without a ping;
# an interval of an hour is certainly not meant.
PING_INTERVAL_MS = 10_000
LEAST_PING_INTERVAL_MS = 1000
LONGEST_PING_INTERVAL_MS = 3_600_000
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
    """The variables to set before RunPod's SDK is imported, so that it finds Waverless's, and what it can use.

    A pod without an id is named after `DEVICE_ID`, else, on Waverless, after its endpoint plus a random part, as in
    Waverless's SDK. A ping interval that would stop the SDK's heartbeat is replaced (`usable_ping_interval`).
    """
    values = _translated(environ) if detect(environ) is PlatformName.WAVERLESS else {}
    interval = ping_interval(environ)
    if interval and not is_usable(interval):
        values[_PING_INTERVAL] = usable_ping_interval(interval)
    if detect(environ) is PlatformName.RUNPOD and not environ.get(_POD_ID) and environ.get("DEVICE_ID"):
        values[_POD_ID] = environ["DEVICE_ID"]
    return values


def ping_interval(environ: Mapping[str, str]) -> str:
    """The interval that the platform asks for, as it says it; empty if it does not."""
    own = environ.get("WAVERLESS_PING_INTERVAL", "") if detect(environ) is PlatformName.WAVERLESS else ""
    return own or environ.get(_PING_INTERVAL, "")


def is_usable(interval: str) -> bool:
    """Whether the SDK's heartbeat can do with it."""
    return interval.strip() == usable_ping_interval(interval)


def usable_ping_interval(text: str) -> str:
    """The whole number of milliseconds to ping at.

    The SDK counts in whole seconds (runpod 1.12.0, rp_ping.py): at less than one, or at anything but a whole number,
    its heartbeat would raise and end, and a platform takes a worker without one for dead.
    """
    try:
        interval = float(text)
    except ValueError:
        interval = 0.0
    if not 0 < interval <= LONGEST_PING_INTERVAL_MS:
        interval = PING_INTERVAL_MS
    return str(int(max(interval, LEAST_PING_INTERVAL_MS)))


def _translated(environ: Mapping[str, str]) -> dict[str, str]:
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
