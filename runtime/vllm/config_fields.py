"""Fields of config.json that vLLM's class of a model reads and transformers' class of the same model does not write.

transformers has them fixed in its code, or derives them from other fields, so a checkpoint that it saved lacks them, and vLLM would take
another default (a softmax over experts instead of a sigmoid) or find none. Comes in: a config as vLLM read it. Guaranteed: a file that has
a family's sign, as published ones do, is left as it is; the others mean what transformers' class makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """sign: a field that only files not written by transformers have. fields: what the others lack, of a config."""

    sign: str
    fields: Callable[[Any], Fields]


def complete(config: Any) -> None:
    """Adds the fields that the config's family lacks, and the base of rotary embeddings under the name of before transformers 5, by which
    some classes of vLLM read it."""
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is not None and getattr(config, family.sign, None) is None:
        for name, value in family.fields(config).items():
            setattr(config, name, value)
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, dict) and "rope_theta" in rotary and not hasattr(config, "rope_theta"):
        config.rope_theta = rotary["rope_theta"]


def _dense_first(config: Any) -> Fields:
    """`first_k_dense_replace` of a list of layers, dense ones first; a list in another order is refused by its row in fixed_fields.py."""
    layers = list(config.mlp_layer_types)
    return {"first_k_dense_replace": layers.index("sparse") if "sparse" in layers else len(layers)}


def _latent_experts(config: Any) -> Fields:
    dense = _dense_first(config) if getattr(config, "mlp_layer_types", None) else {}
    return {"scoring_func": "sigmoid", "topk_method": "noaux_tc", **dense}


def _afmoe(config: Any) -> Fields:
    return {"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1}


def _hy_v3(config: Any) -> Fields:
    return {
        "expert_hidden_dim": config.moe_intermediate_size,
        "route_norm": True,
        "qk_norm": True,
        **_dense_first(config),
    }


def _minimax_m2(config: Any) -> Fields:
    return {"scoring_func": "sigmoid", "use_routing_bias": True}


def _longcat(config: Any) -> Fields:
    return {"zero_expert_type": "identity", "mla_scale_q_lora": True, "mla_scale_kv_lora": True}


def _lfm2(config: Any) -> Fields:
    return {
        "conv_dim": config.hidden_size,
        "block_dim": config.hidden_size,
        "block_ff_dim": config.intermediate_size,
    }


def _kimi_linear(config: Any) -> Fields:
    kinds = ("linear_attention", "full_attention")
    linear, full = ([at for at, one in enumerate(config.layer_types, 1) if one == kind] for kind in kinds)
    attention = {
        "kda_layers": linear,
        "full_attn_layers": full,
        "num_heads": config.linear_num_heads,
        "head_dim": config.linear_head_dim,
        "short_conv_kernel_size": config.linear_conv_kernel_dim,
    }
    return {"linear_attn_config": attention, "mla_use_nope": True, **_dense_first(config)}


def _mimo_v2_flash(config: Any) -> Fields:
    """Layers with a window have twice as many heads of keys and values, and sinks."""
    window, full = (_rope(config, kind) for kind in ("sliding_attention", "full_attention"))
    return {
        "hybrid_layer_pattern": [int(one == "sliding_attention") for one in config.layer_types],
        "moe_layer_freq": [int(one == "sparse") for one in config.mlp_layer_types],
        "layernorm_epsilon": config.rms_norm_eps,
        "rope_theta": full["rope_theta"],
        "swa_rope_theta": window["rope_theta"],
        "partial_rotary_factor": full.get("partial_rotary_factor", 1.0),
        "swa_num_attention_heads": config.num_attention_heads,
        "swa_num_key_value_heads": 2 * config.num_key_value_heads,
        "swa_head_dim": config.head_dim,
        "swa_v_head_dim": config.v_head_dim,
        "sliding_window_size": config.sliding_window,
        "add_swa_attention_sink_bias": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }


def _nomic_bert(config: Any) -> Fields:
    """Names of nomic-ai's own code, and what transformers' class has no field for. Its layers are gated; vLLM has gated ones with silu alone,
    and refuses any other name."""
    return {
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_inner": config.intermediate_size,
        "activation_function": "swiglu" if config.hidden_act == "silu" else f"gated {config.hidden_act}",
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "qkv_proj_bias": False,
        "rotary_emb_scale_base": None,
        "rotary_emb_interleaved": False,
        "layer_norm_epsilon": config.layer_norm_eps,
    }


def _positions(kind: str) -> Family:
    return Family("position_embedding_type", lambda config: {"position_embedding_type": kind})


def _rope(config: Any, kind: str) -> Mapping[str, Any]:
    """The rotary parameters of a kind of layers; the shared ones where they are not by kind."""
    parameters: Mapping[str, Any] = config.rope_parameters
    return parameters.get(kind) or parameters


FAMILIES: Mapping[str, Family] = {
    "afmoe": Family("score_func", _afmoe),
    "deepseek_v3": Family("scoring_func", _latent_experts),
    "deepseek_v32": Family("scoring_func", _latent_experts),
    "gte": _positions("rope"),
    "glm4_moe_lite": Family("first_k_dense_replace", _latent_experts),
    "glm_moe_dsa": Family("scoring_func", lambda config: {**_latent_experts(config), "indexer_rope_interleave": True}),
    "hy_v3": Family("expert_hidden_dim", _hy_v3),
    "kimi_linear": Family("linear_attn_config", _kimi_linear),
    "lfm2": Family("conv_dim", _lfm2),
    "longcat_flash": Family("zero_expert_type", _longcat),
    "mimo_v2_flash": Family("hybrid_layer_pattern", _mimo_v2_flash),
    "minimax_m2": Family("scoring_func", _minimax_m2),
    "nomic_bert": Family("activation_function", _nomic_bert),
    "xlm-roberta": _positions("absolute"),
}
"""By `model_type`."""
