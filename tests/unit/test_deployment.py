"""The requests of scripts/deploy: what a preset and settings come to, and that RunPod's API takes every one of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.settings import ConfigurationError
from scripts.deployment import POOLS, TYPES, Wanted, changes, deployment, price_per_hour, with_catalogue
from sglang_engine.presets import PRESETS
from tests.rest_v2 import CARDS, RestApi, refusals

IMAGE = "ghcr.io/me/glm-flash-worker:0.2.0"


def body_of(gpu: str = "h100", kind: str = "queue", **more: Any) -> dict[str, Any]:
    return deployment(Wanted(image=IMAGE, gpu=gpu, kind=kind, **more)).body


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("gpu", PRESETS)
def test_every_preset_and_type_is_taken_by_the_api(gpu: str, kind: str) -> None:
    catalogue = RestApi().catalogue
    body = body_of(gpu, kind, volume="2q9m7x4c", registry="r1", environment={"HF_TOKEN": "hf_12345678"})
    assert refusals(body) == []
    assert refusals(body | {"gpu": with_catalogue(body["gpu"], PRESETS[gpu], catalogue)}) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"workers": {"min": 0, "max": 3, "idleTimeout": 60}}, "idleTimeout"),
        ({"gpu": {"pools": ["HOPPER_80"]}}, "unknown pool"),
        ({"gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA H200"]}}, "excludedTypes"),
        ({"gpu": {"pools": ["ADA_24"], "minCudaVersion": "13.0", "allowedCudaVersions": ["13.0"]}}, "exclude"),
        ({"gpu": {"pools": ["ADA_24"], "minCudaVersion": "13"}}, "minCudaVersion"),
        ({"type": "LOAD_BALANCER", "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4}}, "load balancer"),
        ({"cpu": [{"id": "cpu5c", "vcpuCount": 2}]}, "exactly one"),
        ({"idleTimeout": 60}, "additional properties"),
        ({"env": {"MAX_CONCURRENCY": 8}}, "strings"),
        ({"scaling": {"type": "REQUEST_COUNT", "requestCount": 0}}, "requestCount"),
    ],
)
def test_emulated_api_refuses_what_the_real_one_does(change: dict[str, Any], named: str) -> None:
    found = refusals(body_of() | change)
    assert found
    assert named in " ".join(found)


def test_every_preset_has_a_pool_that_the_catalogue_confirms() -> None:
    assert set(POOLS) == set(PRESETS)
    for name, preset in PRESETS.items():
        assert with_catalogue({}, preset, RestApi().catalogue)["pools"] == [POOLS[name]]


def test_queue_on_an_h100_is_worked_out_from_the_preset() -> None:
    assert body_of() == {
        "name": "glm-4.7-flash",
        "type": "QUEUE",
        "image": IMAGE,
        "disk": 100,  # 30 and 62.4 x 1.1, in tens
        # 62.4 GB at 0.125 GB/s and then at 0.2, and 180 s: 991 s, and half as much again in whole minutes
        "env": {"PRESET": "h100", "RUNPOD_INIT_TIMEOUT": "1500"},
        "gpu": {"pools": ["ADA_80_PRO"], "count": 1, "minCudaVersion": "13.0"},
        "workers": {"min": 0, "max": 3},
        # 80 x 0.9 - 62.4 = 9.6 GB, 177,000 tokens of 54 KB, 44 requests of 4,000, two thirds
        "scaling": {"type": "REQUEST_COUNT", "requestCount": 29},
        "timeout": 600_000,
        "flashboot": "FLASHBOOT",
    }


def test_load_balancer_has_a_port_and_an_idle_timeout_and_the_mode() -> None:
    body = body_of(kind="http")
    assert body["ports"] == ["80/http"]
    assert body["env"]["MODE"] == "http"
    assert body["workers"]["idleTimeout"] == 60
    assert body["timeout"] == 330_000, "5.5 minutes, the balancer's own limit"
    assert body_of(kind="http", environment={"PORT": "8080"})["ports"] == ["8080/http"]
    ports = body_of(kind="http", environment={"PORT": "8080", "PORT_HEALTH": "8081"})["ports"]
    assert ports == ["8080/http", "8081/http"]


def test_volume_holds_the_model_instead_of_the_disk() -> None:
    body = body_of(volume="2q9m7x4c")
    assert body["networkVolumes"] == ["2q9m7x4c"]
    assert body["disk"] == 30


@pytest.mark.parametrize(
    ("environment", "count", "requests"),
    [
        ({}, 1, 29),
        # Each GPU has half of the weights and the whole KV cache: 72 - 31.2 = 40.8 GB.
        ({"TENSOR_PARALLEL_SIZE": "2"}, 2, 125),
        ({"DATA_PARALLEL_SIZE": "2"}, 2, 58),
        ({"SGLANG_EXTRA_ARGS": "--tp 2"}, 2, 125),
        ({"TP_SIZE": "2", "DP_SIZE": "2", "ENABLE_DP_ATTENTION": "true"}, 2, 200),
        ({"MAX_CONCURRENCY": "12"}, 1, 8),
        ({"MAX_RUNNING_REQUESTS": "6"}, 1, 4),
        ({"MAX_RUNNING_REQUESTS": "1"}, 1, 1),
    ],
)
def test_gpus_and_scaler_follow_the_settings(environment: dict[str, str], count: int, requests: int) -> None:
    body = body_of(environment=environment)
    assert (body["gpu"]["count"], body["scaling"]["requestCount"]) == (count, requests)


def test_start_limit_is_the_user_s_if_there_is_one() -> None:
    assert body_of(environment={"RUNPOD_INIT_TIMEOUT": "900"})["env"]["RUNPOD_INIT_TIMEOUT"] == "900"


def test_model_of_unknown_size_gets_what_the_card_holds_and_a_note() -> None:
    planned = deployment(Wanted(image=IMAGE, gpu="rtx4090-awq", environment={"MODEL_NAME": "org/other"}))
    assert planned.body["disk"] == 60, "30 and 24 x 0.9 x 1.1, in tens"
    assert any("size is not known" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (Wanted(image=IMAGE, gpu="h1000"), "expected one of h100, "),
        (Wanted(image=IMAGE, gpu="h1000"), "(do you mean h100?)"),
        (Wanted(image=IMAGE, gpu="H100"), "(do you mean h100 or h100-nvl?)"),
        (Wanted(image=IMAGE, gpu="4090"), "(do you mean rtx4090-awq?)"),
        (Wanted(image="", gpu="h100"), "--image"),
        (Wanted(image="two words", gpu="h100"), "--image"),
        (Wanted(image=IMAGE, gpu="h100", max_workers=0), "--max-workers 0"),
        (Wanted(image=IMAGE, gpu="h100", environment={"TP_SIZE": "two"}), "TP_SIZE='two'"),
        (Wanted(image=IMAGE, gpu="h100", environment={"MAX_N": "many"}), "MAX_N='many'"),
        (Wanted(image=IMAGE, gpu="h100", environment={"RUNPOD_INIT_TIMEOUT": "soon"}), "RUNPOD_INIT_TIMEOUT='soon'"),
        (Wanted(image=IMAGE, gpu="h100", environment={"PRESET": "b200"}), "--gpu h100 sets it"),
        (Wanted(image=IMAGE, gpu="h100", environment={"MODE": "http"}), "--type sets it"),
        (Wanted(image=IMAGE, gpu="h100", kind="http", environment={"ENGINE_PORT": "80"}), "ENGINE_PORT=80"),
    ],
)
def test_wrong_setting_is_named_before_anything_is_sent(wanted: Wanted, named: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        deployment(wanted)
    assert named in str(refusal.value)


def test_all_problems_are_reported_at_once() -> None:
    wanted = Wanted(image="", gpu="nope", max_workers=-1, environment={"TP_SIZE": "two"})
    with pytest.raises(ConfigurationError) as refusal:
        deployment(wanted)
    assert len(refusal.value.problems) == 4


@pytest.mark.parametrize("gpu", PRESETS)
def test_model_to_be_cached_is_named_unless_there_is_a_volume(gpu: str) -> None:
    model = PRESETS[gpu].variables.get("MODEL_NAME", "zai-org/GLM-4.7-Flash")
    note = f"or name {model} as the endpoint's Model in RunPod's console"
    assert any(note in told for told in deployment(Wanted(image=IMAGE, gpu=gpu)).notes)
    assert not any("Model in RunPod" in told for told in deployment(Wanted(image=IMAGE, gpu=gpu, volume="v")).notes)


def test_misspelt_variable_gets_its_hint_as_a_note() -> None:
    planned = deployment(Wanted(image=IMAGE, gpu="h100", environment={"CONTEXT_LENGHT": "8192"}))
    assert any("CONTEXT_LENGTH" in note for note in planned.notes)


@pytest.mark.parametrize("image", ["ghcr.io/me/glm", "localhost:5000/glm", "ghcr.io/me/glm:latest"])
def test_image_that_moves_gets_a_note(image: str) -> None:
    assert any("another build" in note for note in deployment(Wanted(image=image, gpu="h100")).notes)
    assert not any("another build" in note for note in deployment(Wanted(image=IMAGE, gpu="h100")).notes)


def test_shown_request_has_no_secret_and_keeps_references() -> None:
    environment = {
        "HF_TOKEN": "hf_12345678",
        "API_KEY": "abc",
        "SGLANG_EXTRA_ARGS": "--admin-api-key s3cret-of-mine",
        "OTHER_TOKEN": "{{ RUNPOD_SECRET_hf }}",
        "WEBHOOK": "https://example.com/?token=tok_87654321",
    }
    planned = deployment(Wanted(image=IMAGE, gpu="h100", environment=environment))
    text = planned.shown()
    assert not any(secret in text for secret in ("hf_12345678", "abc", "s3cret-of-mine", "tok_87654321"))
    assert json.loads(text)["env"].items() >= {("OTHER_TOKEN", environment["OTHER_TOKEN"])}
    assert planned.body["env"] | environment == planned.body["env"], "what is sent has them"


def test_catalogue_decides_on_pools_and_leaves_out_smaller_cards() -> None:
    catalogue = RestApi().catalogue
    gpu = with_catalogue({"pools": ["OLD"], "excludedTypes": ["x"], "count": 2}, PRESETS["h100-nvl"], catalogue)
    assert gpu == {
        "pools": ["ADA_80_PRO"],
        "excludedTypes": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"],
        "count": 2,
    }
    assert with_catalogue({}, PRESETS["l4-awq"], catalogue)["excludedTypes"] == ["NVIDIA RTX A4500"]
    moved = [entry | {"pool": "BLACKWELL_288"} if "B300" in entry["id"] else entry for entry in catalogue]
    assert with_catalogue({}, PRESETS["b300"], moved) == {"pools": ["BLACKWELL_288"]}


def test_card_that_no_pool_has_is_refused() -> None:
    catalogue: list[dict[str, Any]] = [
        {"id": card, "pool": None, "memory": memory, "price": {}} for card, _, memory, _ in CARDS
    ]
    with pytest.raises(ConfigurationError, match="no serverless pool with H200"):
        with_catalogue({}, PRESETS["h200"], catalogue)


def test_price_is_the_catalogue_s() -> None:
    assert price_per_hour(PRESETS["h100"], RestApi().catalogue) == 4.18
    assert price_per_hour(PRESETS["h100"], []) is None


# --- Changes ---------------------------------------------------------------------------------------------------------


def endpoint_with(**more: Any) -> dict[str, Any]:
    return RestApi().add(body_of(environment={"HF_TOKEN": "hf_12345678"})) | more


def changed(endpoint: dict[str, Any], **given: Any) -> dict[str, Any]:
    wanted = Wanted(**{"image": "", "gpu": "", **given})
    body = changes(endpoint, wanted, frozenset(given)).body
    assert refusals(body, endpoint=endpoint) == []
    return body


def test_new_image_changes_nothing_else() -> None:
    assert changed(endpoint_with(disk=200), image=f"{IMAGE}.1") == {"image": f"{IMAGE}.1"}


def test_update_to_what_is_there_is_nothing() -> None:
    assert changed(endpoint_with(), image=IMAGE, max_workers=3, gpu="h100") == {}


def test_new_variable_is_sent_with_those_that_are_there() -> None:
    body = changed(endpoint_with(), environment={"CONTEXT_LENGTH": "8192"})
    assert body == {
        "env": {
            "PRESET": "h100",
            "RUNPOD_INIT_TIMEOUT": "1500",
            "HF_TOKEN": "hf_12345678",
            "CONTEXT_LENGTH": "8192",
        }
    }


def test_variable_that_needs_more_gpus_brings_them() -> None:
    body = changed(endpoint_with(), environment={"TENSOR_PARALLEL_SIZE": "2"})
    assert body["gpu"]["count"] == 2
    assert body["scaling"]["requestCount"] == 125


def test_other_card_brings_its_pool_disk_scaler_and_start_limit() -> None:
    body = changed(endpoint_with(), gpu="rtx4090-awq")
    assert body["gpu"]["pools"] == ["ADA_24"]
    assert (body["disk"], body["env"]["PRESET"], body["env"]["RUNPOD_INIT_TIMEOUT"]) == (60, "rtx4090-awq", "660")
    assert "HF_TOKEN" in body["env"]
    assert "scaling" in body


def test_workers_keep_what_the_user_has_set_by_hand() -> None:
    assert changed(endpoint_with(workers={"min": 1, "max": 3}), max_workers=8) == {"workers": {"min": 1, "max": 8}}


def test_endpoint_that_runpod_scaled_to_nothing_gets_its_workers_back() -> None:
    assert changed(endpoint_with(workers={"min": 0, "max": 0}), max_workers=1) == {"workers": {"min": 0, "max": 1}}


def test_cuda_versions_that_were_chosen_by_hand_stay_and_exclude_the_floor() -> None:
    gpu = {"pools": ["ADA_80_PRO"], "count": 1, "allowedCudaVersions": ["13.0", "13.1"], "minCudaVersion": None}
    assert changed(endpoint_with(gpu=gpu), gpu="h200")["gpu"] == {"pools": ["HOPPER_141"], "count": 1}


def test_queue_delay_that_was_chosen_by_hand_stays_with_its_idle_time_out() -> None:
    by_hand = {
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "workers": {"min": 0, "max": 3, "idleTimeout": 60},
    }
    body = changed(endpoint_with(**by_hand), gpu="h200", max_workers=5)
    assert "scaling" not in body
    assert body["workers"] == {"min": 0, "max": 5, "idleTimeout": 60}


def test_type_cannot_be_changed() -> None:
    with pytest.raises(ConfigurationError, match="other type"):
        changed(endpoint_with(), kind="http")


def test_endpoint_of_another_worker_needs_a_preset() -> None:
    with pytest.raises(ConfigurationError, match="--gpu is needed"):
        changed(endpoint_with(env={}), image=IMAGE)
