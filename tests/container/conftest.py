"""The image, built from the unmodified Dockerfile on a base with the scripted engine, and its containers.

Needs a Docker daemon, and a registry or the images named by WORKER_IMAGE and ROUTER_IMAGE, built already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.worker_process import REPOSITORY, SCRIPTED_ENGINE

COMPOSE = Path(sys.executable).with_name("docker-compose")
BUILD_SECONDS = 600
# No NVIDIA driver here: the service loses its GPU, and takes the image that was built.
OVERRIDE = "services:\n  worker:\n    deploy: !reset null\n    image: {image}\n"
# As if there were two of them: `nvidia-smi -i 1` finds the second one, and nobody a third.
FLEET = """\
services:
  worker: {{deploy: !reset null, image: {image}}}
  router: {{image: {router}}}
"""
MEMBER = "  fleet-{number}: {{deploy: !reset null, image: {image}, volumes: ['{smi}:/usr/local/bin/nvidia-smi:ro']}}\n"
NVIDIA_SMI = '#!/bin/sh\n[ "$*" = "-i 1" ]\n'


def run(*command: str, check: bool = True, seconds: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; its output as text."""
    return subprocess.run(command, check=check, timeout=seconds, text=True, capture_output=True, **more)


@dataclass(frozen=True)
class Docker:
    """A Docker daemon with the worker's image."""

    image: str

    def answer(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker …`."""
        return run("docker", *arguments, check=check)

    def inspect(self, container: str, what: str) -> Any:
        """A part of `docker inspect`, as JSON."""
        return json.loads(self.answer("inspect", "--format", f"{{{{json {what}}}}}", container).stdout)

    def processes(self, container: str) -> list[str]:
        """State and command of each process inside, as `ps` on this machine tells them."""
        return self.answer("top", container, "-eo", "pid,stat,args").stdout.splitlines()[1:]


@pytest.fixture(scope="session")
def docker() -> Docker:
    if shutil.which("docker") is None or run("docker", "info", check=False).returncode:
        pytest.skip("needs a Docker daemon")
    if image := os.environ.get("WORKER_IMAGE"):
        return Docker(image)
    base, image = "glm-flash-worker-test-base", "glm-flash-worker-test"
    recipe = str(REPOSITORY / "tests" / "container" / "Dockerfile.base")
    built = run("docker", "build", "-t", base, "-f", recipe, str(SCRIPTED_ENGINE), check=False, seconds=BUILD_SECONDS)
    if built.returncode:
        pytest.skip(f"needs a registry to build on: {built.stderr.splitlines()[-1]}")
    run("docker", "build", "-t", image, "--build-arg", f"BASE_IMAGE={base}", str(REPOSITORY), seconds=BUILD_SECONDS)
    return Docker(image)


@dataclass(frozen=True)
class Compose:
    """The compose file as a project of its own, with the image that was built."""

    docker: Docker
    command: tuple[str, ...]

    def answer(self, *arguments: str, check: bool = True, seconds: float = 200) -> subprocess.CompletedProcess[str]:
        """`docker compose …`."""
        return run(*self.command, *arguments, check=check, seconds=seconds)

    @property
    def container(self) -> str:
        """The id of the worker's container."""
        return self.answer("ps", "--all", "--quiet", "worker").stdout.strip()


@contextmanager
def composed(docker: Docker, folder: Path, override: str, *options: str) -> Iterator[Compose]:
    """The compose file with this override; gone without a trace at the end."""
    path = folder / "override.yml"
    path.write_text(override)
    files = ("-f", str(REPOSITORY / "docker-compose.yml"), "-f", str(path))
    compose = Compose(docker, (str(COMPOSE), "--project-name", "glm-flash-worker-test", *files, *options))
    try:
        yield compose
    finally:
        compose.answer("down", "--volumes", "--timeout", "5")


@pytest.fixture
def compose(docker: Docker, tmp_path: Path) -> Iterator[Compose]:
    with composed(docker, tmp_path, OVERRIDE.format(image=docker.image)) as compose:
        yield compose


@pytest.fixture
def fleet(docker: Docker, tmp_path: Path) -> Iterator[Compose]:
    """`docker compose --profile fleet` on a machine with two GPUs, of which the engine here needs none."""
    router = os.environ.get("ROUTER_IMAGE", "glm-flash-router-test")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    members = [MEMBER.format(number=number, image=docker.image, smi=smi) for number in range(1, 8)]
    override = FLEET.format(image=docker.image, router=router) + "".join(members)
    with composed(docker, tmp_path, override, "--profile", "fleet") as fleet:
        if "ROUTER_IMAGE" not in os.environ:
            built = fleet.answer("build", "router", check=False, seconds=BUILD_SECONDS)
            if built.returncode:
                pytest.skip(f"needs a registry to build on: {built.stderr.splitlines()[-1]}")
        yield fleet
