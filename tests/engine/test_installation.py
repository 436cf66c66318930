"""What the engine is: the options that SGLang itself takes, and the model that is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from safetensors import safe_open

from embedded.environment import MODEL_FOLDER, engine_environment
from engine import OPTIONS, Kind

LIST_FLAGS = """
import argparse, json
from sglang.srt.server_args import ServerArgs

parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
takes_value = {flag: action.nargs != 0 for action in parser._actions for flag in action.option_strings}
print(json.dumps(takes_value))
"""


def test_every_option_is_one_of_sglang_s() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIST_FLAGS], env=engine_environment(os.environ), capture_output=True, check=True
    )
    takes_value: dict[str, bool] = json.loads(run.stdout.splitlines()[-1])
    for name, option in OPTIONS.items():
        assert option.flag in takes_value, name
        assert takes_value[option.flag] == (option.kind is not Kind.FLAG), name


def test_checkpoint_has_glm_flash_s_architecture_and_its_mtp_layer() -> None:
    config = json.loads((MODEL_FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Glm4MoeLiteForCausalLM"]
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (3, 1)
    with safe_open(MODEL_FOLDER / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert "model.layers.0.mlp.gate_proj.weight" in names  # the dense first layer
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in names  # the experts
    assert "model.layers.2.self_attn.kv_a_proj_with_mqa.weight" in names  # latent attention
    assert {"model.layers.3.eh_proj.weight", "model.layers.3.shared_head.head.weight"} <= names  # the MTP layer
