"""docs/kubernetes.md: its objects fit together, and what they run exists."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sglang_router.router_args import RouterArgs

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
OBJECTS: dict[tuple[str, str], Any] = {
    (each["kind"], each["metadata"]["name"]): each
    for block in re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    for each in yaml.safe_load_all(block)
}


def pod_of(name: str) -> Any:
    return OBJECTS["Deployment", name]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["glm-flash", "glm-flash-router"])
def test_deployment_finds_its_own_pods(name: str) -> None:
    deployment = OBJECTS["Deployment", name]["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]


def test_service_leads_to_the_router() -> None:
    service = OBJECTS["Service", "glm-flash"]["spec"]
    labels = OBJECTS["Deployment", "glm-flash-router"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    [container] = pod_of("glm-flash-router")["containers"]
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


def test_worker_serves_where_its_probes_ask() -> None:
    pod = pod_of("glm-flash")
    [worker] = pod["containers"]
    assert worker["args"][-2:] == ["handler.py", "--serve_http"]
    variables = {variable["name"]: variable.get("value") for variable in worker["env"]}
    assert {port["containerPort"] for port in worker["ports"]} == {int(variables["PORT"])}
    assert worker["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert worker["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert pod["terminationGracePeriodSeconds"] > 120
    assert pod["enableServiceLinks"] is False
    assert {mount["name"] for mount in worker["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_router_takes_its_command_line() -> None:
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser)
    [container] = pod_of("glm-flash-router")["containers"]
    words = container["args"][0].split("launch_router")[1].split()
    parsed = parser.parse_args([word.strip('"') for word in words])
    workers = OBJECTS["Deployment", "glm-flash"]["spec"]["template"]["metadata"]["labels"]
    assert parsed.selector == [f"app={workers['app']}"]
    [by_hand] = re.findall(r"launch_router (--port.+?)\n```", PAGE, re.DOTALL)
    assert parser.parse_args(by_hand.replace("\\\n", " ").split()).policy == "cache_aware"
