"""Which platform it is, and Waverless's variables in RunPod's words."""

from __future__ import annotations

import re

import pytest

from serverless.environment import PlatformName, detect, translate

WAVERLESS = {
    "WAVERLESS_ENDPOINT_ID": "glm",
    "WAVERLESS_POD_ID": "pod-7",
    "WAVERLESS_API_KEY": "secret-key",
    "WAVERLESS_PING_INTERVAL": "5000",
    "WAVERLESS_LOG_LEVEL": "WARN",
    "WAVERLESS_WEBHOOK_GET_JOB": "https://w/v2/glm/job-take/$WAVERLESS_POD_ID?gpu=x",
    "WAVERLESS_WEBHOOK_POST_OUTPUT": "https://w/v2/glm/job-done/$WAVERLESS_POD_ID/$ID?gpu=x",
    "WAVERLESS_WEBHOOK_POST_STREAM": "https://w/v2/glm/job-stream/$WAVERLESS_POD_ID/$ID?gpu=x",
    "WAVERLESS_WEBHOOK_PING": "https://w/v2/glm/ping/$WAVERLESS_POD_ID",
}
RUNPOD = {
    "RUNPOD_ENDPOINT_ID": "other",
    "RUNPOD_POD_ID": "other-pod",
    "RUNPOD_WEBHOOK_GET_JOB": "https://r/v2/other/job-take/$ID?gpu=y",
}


@pytest.mark.parametrize(
    ("environ", "platform"),
    [
        ({}, PlatformName.LOCAL),
        ({"RUNPOD_ENDPOINT_ID": "e"}, PlatformName.RUNPOD),
        ({"RUNPOD_WEBHOOK_GET_JOB": "https://x"}, PlatformName.RUNPOD),
        ({"WAVERLESS_ENDPOINT_ID": "e"}, PlatformName.WAVERLESS),
        ({"WAVERLESS_ENDPOINT_ID": "e", "RUNPOD_ENDPOINT_ID": "e"}, PlatformName.WAVERLESS),
        ({"WAVERLESS_ENDPOINT_ID": "", "RUNPOD_ENDPOINT_ID": "e"}, PlatformName.RUNPOD),
        ({"WAVERLESS_POD_ID": "p", "RUNPOD_POD_ID": "p"}, PlatformName.LOCAL),
    ],
)
def test_platform_is_told_by_its_variables(environ: dict[str, str], platform: PlatformName) -> None:
    assert detect(environ) is platform


def test_nothing_is_translated_off_waverless() -> None:
    assert translate(RUNPOD) == {}
    assert translate({}) == {}


@pytest.mark.parametrize("twins", [{}, RUNPOD])
def test_waverless_variables_become_runpod_s_and_win_over_them(twins: dict[str, str]) -> None:
    assert translate(WAVERLESS | twins) == {
        "RUNPOD_ENDPOINT_ID": "glm",
        "RUNPOD_POD_ID": "pod-7",
        "RUNPOD_AI_API_KEY": "secret-key",
        "RUNPOD_PING_INTERVAL": "5000",
        "RUNPOD_LOG_LEVEL": "WARN",
        "RUNPOD_WEBHOOK_GET_JOB": "https://w/v2/glm/job-take/pod-7?gpu=x",
        "RUNPOD_WEBHOOK_POST_OUTPUT": "https://w/v2/glm/job-done/pod-7/$ID?gpu=x",
        "RUNPOD_WEBHOOK_POST_STREAM": "https://w/v2/glm/job-stream/pod-7/$ID?gpu=x",
        "RUNPOD_WEBHOOK_PING": "https://w/v2/glm/ping/pod-7?",
    }


def test_twin_counts_where_waverless_s_own_variable_is_missing() -> None:
    environ = {"WAVERLESS_ENDPOINT_ID": "glm", "WAVERLESS_POD_ID": "p", **RUNPOD}
    environ["RUNPOD_WEBHOOK_PING"] = "https://r/ping/$WAVERLESS_POD_ID?a=b"
    translated = translate(environ)
    assert translated["RUNPOD_WEBHOOK_GET_JOB"] == RUNPOD["RUNPOD_WEBHOOK_GET_JOB"]
    assert translated["RUNPOD_WEBHOOK_PING"] == "https://r/ping/p?a=b"


@pytest.mark.parametrize(
    ("more", "pod_id"),
    [({"DEVICE_ID": "gpu-3"}, "gpu-3"), ({"RUNPOD_POD_ID": "r", "DEVICE_ID": "gpu-3"}, "r"), ({}, r"glm-[0-9a-f]{8}")],
)
def test_pod_without_an_id_gets_one(more: dict[str, str], pod_id: str) -> None:
    environ = {name: value for name, value in WAVERLESS.items() if name != "WAVERLESS_POD_ID"} | more
    translated = translate(environ)
    assert re.fullmatch(pod_id, translated["RUNPOD_POD_ID"])
    assert f"/job-take/{translated['RUNPOD_POD_ID']}?" in translated["RUNPOD_WEBHOOK_GET_JOB"]


def test_address_without_parameters_gets_room_for_the_sdk_s() -> None:
    environ = WAVERLESS | {"WAVERLESS_WEBHOOK_GET_JOB": "https://w/job-take/$WAVERLESS_POD_ID"}
    assert translate(environ)["RUNPOD_WEBHOOK_GET_JOB"] == "https://w/job-take/pod-7?"
