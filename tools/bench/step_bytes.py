"""Bytes that a decode step reads at least, by a model's config.json: each weight that some row needs, once, and the states of layers that keep one.

Of a mixture's experts those that rows choose, as many as are expected of rows that choose at random: E (1 - (1 - k / E)^rows). Caches of the few
tokens before are left out, as are norms and biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATE_BYTES = 4
"""Of a number of a recurrent state, which is float32."""


def step_bytes(config: Mapping[str, Any], rows: int, itemsize: int) -> float:
    """config: of a decoder whose layers are attention, latent attention or Mamba 2, each followed by an MLP or a mixture."""
    kinds = config.get("layer_types") or ["attention"] * config["num_hidden_layers"]
    weights: float = config["vocab_size"] * config["hidden_size"]
    for number, kind in enumerate(kinds):
        weights += _mamba(config) if kind == "mamba" else _attention(config)
        weights += _mlp(config, number, rows)
    states = kinds.count("mamba") * rows * _state(config) * STATE_BYTES * 2  # read and written
    return weights * itemsize + states


def _attention(config: Mapping[str, Any]) -> float:
    size, heads = config["hidden_size"], config["num_attention_heads"]
    latent = config.get("kv_lora_rank")
    if latent is None:
        head_size = config.get("head_dim") or size // heads
        return 2 * size * head_size * (heads + config["num_key_value_heads"])
    plain, rotary, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    query = size * heads * (plain + rotary)
    return query + size * (latent + rotary) + latent * heads * (plain + value) + heads * value * size


def _mamba(config: Mapping[str, Any]) -> float:
    inner = config["mamba_n_heads"] * config["mamba_d_head"]
    projected = 2 * inner + 2 * config["mamba_n_groups"] * config["mamba_d_state"] + config["mamba_n_heads"]
    return config["hidden_size"] * (projected + inner)


def _state(config: Mapping[str, Any]) -> float:
    return (
        config["mamba_n_heads"] * config["mamba_d_head"] * config["mamba_d_state"] if "mamba_n_heads" in config else 0
    )


def _mlp(config: Mapping[str, Any], number: int, rows: int) -> float:
    size = config["hidden_size"]
    experts = config.get("num_experts") or config.get("n_routed_experts")
    if not experts or number < config.get("first_k_dense_replace", 0):
        return 3 * size * config.get("shared_intermediate_size", config["intermediate_size"])
    chosen = experts * (1 - (1 - config["num_experts_per_tok"] / experts) ** rows) + config.get("n_shared_experts", 0)
    return size * experts + 3 * size * config["moe_intermediate_size"] * chosen
