"""The result of planning: what to run as the engine, and how to reach it. A plain value; engine.py makes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.addresses import url_of
from sglang_engine import hub, kernel_caches
from sglang_engine.hub import DownloadWatch, HubModel
from sglang_engine.options import masked, secrets_of, values_of, with_value

MODULE = "sglang.launch_server"


@dataclass(frozen=True)
class Setting:
    """A variable in effect, its value, and where it came from: `default`, `image`, `preset …` or `environment`."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Launch:
    """A checked configuration of the engine."""

    arguments: tuple[str, ...]
    """SGLang's launch arguments, after `python -m sglang.launch_server`."""

    settings: tuple[Setting, ...]
    """The variables that the arguments come from."""

    host: str
    port: int
    served_model_name: str
    api_key: str | None = None

    models: tuple[HubModel, ...] = ()
    """What it needs from the hub."""

    download_folder: str | None = None
    """SGLang's --download-dir."""

    environment: tuple[tuple[str, str], ...] = ()
    """Variables for the engine's process; those that are set already win."""

    notes: tuple[str, ...] = ()
    """What has been chosen for the user, and why: a line each."""

    warnings: tuple[str, ...] = ()
    """What the user may not have meant: a line each."""

    def with_models_on_disk(self, environ: Mapping[str, str]) -> Launch:
        """The same, with a folder in place of each model that is completely on disk; the others stay in `models`."""
        where = hub.caches(environ, self.download_folder)
        arguments, missing = list(self.arguments), []
        for model in self.models:
            folder = model.flag and hub.find_model(model.repository, model.revision, where)
            if folder:
                arguments = with_value(arguments, model.flag, str(folder))
            else:
                missing.append(model)
        if len(missing) < len(self.models) and "--served-model-name" not in dict(values_of(arguments)):
            arguments += ["--served-model-name", self.served_model_name]  # else SGLang would use the folder's name
        return replace(self, arguments=tuple(arguments), models=tuple(missing))

    @property
    def secrets(self) -> list[str]:
        """The keys and passwords among its arguments, wherever they were set."""
        return list(secrets_of(self.arguments))

    @property
    def is_offline(self) -> bool:
        """Whether the engine needs nothing from the hub, and so starts without asking it."""
        return not self.models

    @property
    def has_metrics(self) -> bool:
        """Whether it serves metrics of its own."""
        return "--enable-metrics" in self.arguments

    @property
    def base_url(self) -> str:
        """The engine's URL on this machine."""
        return url_of(self.host, self.port)

    def download_watch(self, environ: Mapping[str, str]) -> DownloadWatch | None:
        """A watch for the model's download; None if there is nothing to download."""
        model = next((model for model in self.models if model.flag == "--model-path"), None)
        if model is None:
            return None
        where = hub.caches(environ, self.download_folder)[-1]
        return DownloadWatch(model.repository, model.revision, where, environ)

    def command(self) -> list[str]:
        """The engine's command line, for this Python."""
        return [sys.executable, "-m", MODULE, *self.arguments]

    def shown_command(self) -> str:
        """The command line for the log, with secrets masked."""
        return shlex.join(masked(self.command()))

    def child_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The engine's environment: ours, with a `/health` that does not generate tokens but still means warm."""
        offline = {"HF_HUB_OFFLINE": "1"} if self.is_offline else {}
        # How often SGLang checks whether the caller of an unstreamed request is still there; its own default is 4 s.
        hang_ups = {"SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "1"}
        # CUDA's own order has the fastest card first; where cards differ, the first one is then not nvidia-smi's.
        order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return {
            **hang_ups,
            **order,
            **dict(self.environment),
            **kernel_caches.variables(environ),
            **environ,
            **offline,
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
        }
