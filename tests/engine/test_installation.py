"""The model that the engine serves here."""

from __future__ import annotations

import json

from safetensors import safe_open

from embedded.environment import MODEL_FOLDER


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
