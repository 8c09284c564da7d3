"""Random models of the families that both libraries have: an `Architecture` of a name and a seed, always the same one.

What is drawn is what transformers' config of the family has, over the whole of its meaning, and now and then a field that vLLM's class does not
read, which must be refused. What the libraries define differently (docs/status.md) is not drawn: the comment says where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .drawing import IDS, Draw, Sizes, body, experts, groups, latent, multipliers, rope, ssd, windows, yarn
from .small import Architecture

SPREAD = 4.0
"""How much further than usual norms, biases and decays are from what they are initialized to."""
SSD = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_chunk_size")
DELTA = ("linear_num_key_heads", "linear_num_value_heads")


def draw(name: str, seed: int) -> Architecture:
    """The model of a key of `FAMILIES`."""
    config, sizes_of = FAMILIES[name]
    d = Draw(f"{name}@{seed}")
    attention = "eager" if name == "Gemma2ForCausalLM" else None
    # transformers' grouped products of experts want sizes that are multiples of four
    return Architecture(name, config, sizes_of(d), attention=attention, experts="eager", spread=SPREAD)


# -- dense -------------------------------------------------------------------------------------------------------------


def _llama(d: Draw) -> Sizes:
    return body(d) | rope(d) | {"attention_bias": d.one(True, False), "mlp_bias": d.one(True, False)}


def _qwen2(d: Draw) -> Sizes:
    window = {"use_sliding_window": True, "sliding_window": d.one(5, 16), "max_window_layers": d.one(0, 1, 4)}
    return body(d, head_dim=False) | rope(d) | (window if d.one(*range(4)) == 0 else {}) | d.rarely(head_dim=12)


def _olmo2(d: Draw) -> Sizes:
    return body(d, head_dim=False) | rope(d) | {"attention_bias": d.one(True, False)}


def _qwen3(d: Draw) -> Sizes:
    return body(d) | rope(d) | {"attention_bias": False} | d.rarely(attention_bias=True)


def _mistral(d: Draw) -> Sizes:
    return body(d) | rope(d) | {"sliding_window": d.one(None, 5, 16)}


def _gemma(d: Draw) -> Sizes:
    return body(d) | rope(d) | {"attention_bias": False} | d.rarely(attention_bias=True)


def _gemma2(d: Draw) -> Sizes:
    sizes = body(d, layers=3) | rope(d) | windows(d, 3)
    return sizes | {
        "query_pre_attn_scalar": d.one(8, 16, 50),
        "attention_bias": d.one(True, False),
        "attn_logit_softcapping": d.one(None, 5.0, 50.0),
        "final_logit_softcapping": d.one(None, 3.0, 30.0),
    }


def _gemma3(d: Draw) -> Sizes:
    sizes = body(d, layers=3) | windows(d, 3)
    kinds = {kind: rope(d)["rope_parameters"] for kind in ("full_attention", "sliding_attention")}
    return sizes | {
        "rope_parameters": kinds,
        "query_pre_attn_scalar": d.one(8, 16, 50),
        "attention_bias": d.one(True, False),
        "final_logit_softcapping": d.one(None, 3.0),
        **d.rarely(attn_logit_softcapping=5.0),
    }


def _phi3(d: Draw) -> Sizes:
    rotated = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": d.one(0.5, 1.0)}
    return body(d, head_dim=False) | {"rope_parameters": rotated, "sliding_window": d.one(None, 5, 16)}


def _granite(d: Draw) -> Sizes:
    biases = {"attention_bias": d.one(True, False), "mlp_bias": d.one(True, False)}
    return body(d, head_dim=False) | rope(d) | multipliers(d) | biases


def _glm4(d: Draw) -> Sizes:
    return body(d) | {"attention_bias": d.one(True, False)}


def _nemotron(d: Draw) -> Sizes:
    sizes = body(d)
    sizes["norm_eps"] = sizes.pop("rms_norm_eps")
    biases = {"attention_bias": d.one(True, False), "mlp_bias": d.one(True, False)}
    return sizes | biases | {"hidden_act": d.one("relu2", "gelu", "silu")}


def _stablelm(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False)
    sizes["layer_norm_eps"] = sizes.pop("rms_norm_eps")
    rotated = {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": d.one(0.25, 0.5, 1.0),
        }
    }
    biases = {"use_qkv_bias": d.one(True, False)}
    return sizes | rotated | biases | d.rarely(qk_layernorm=True, use_parallel_residual=True, hidden_act="gelu")


def _exaone4(d: Draw) -> Sizes:
    return body(d, layers=3) | windows(d, 3) | rope(d)


def _cohere(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False)
    sizes["layer_norm_eps"] = sizes.pop("rms_norm_eps")
    sizes["tie_word_embeddings"] = True
    return (
        sizes
        | {"logit_scale": d.one(0.0625, 1.0), "use_qk_norm": d.one(True, False)}
        | d.rarely(attention_bias=True, hidden_act="gelu")
    )


# -- mixtures of experts -----------------------------------------------------------------------------------------------


def _mixtral(d: Draw) -> Sizes:
    sizes = body(d) | rope(d) | experts(d, "num_local_experts", "num_experts_per_tok")
    return sizes | {"sliding_window": d.one(None, None, 16)} | d.rarely(hidden_act="gelu")


def _qwen2_moe(d: Draw) -> Sizes:
    sizes = (
        body(d, head_dim=False) | rope(d) | experts(d, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    )
    return sizes | {
        "shared_expert_intermediate_size": d.one(24, 40),
        "norm_topk_prob": d.one(True, False),
        "decoder_sparse_step": d.one(1, 2),
        "mlp_only_layers": d.one([], [0]),
        **d.rarely(qkv_bias=False, head_dim=12, use_sliding_window=True),
    }


def _qwen3_moe(d: Draw) -> Sizes:
    sizes = body(d) | rope(d) | experts(d, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    window = {"use_sliding_window": True, "sliding_window": d.one(5, 16)}
    return (
        sizes
        | d.maybe(**window)
        | {
            "attention_bias": False,
            "norm_topk_prob": d.one(True, False),
            "decoder_sparse_step": d.one(1, 2),
            "mlp_only_layers": d.one([], [0]),
            **d.rarely(attention_bias=True),
        }
    )


def _olmoe(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | rope(d) | experts(d, "num_experts", "num_experts_per_tok")
    return (
        sizes
        | {"rms_norm_eps": 1e-5}
        | d.rarely(rms_norm_eps=1e-2, norm_topk_prob=True, clip_qkv=0.5, hidden_act="gelu", attention_bias=True)
    )


def _granite_moe(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | rope(d) | experts(d, "num_local_experts", "num_experts_per_tok")
    return sizes | multipliers(d) | d.rarely(attention_bias=True, hidden_act="gelu", head_dim=12)


def _gpt_oss(d: Draw) -> Sizes:
    sizes = body(d) | experts(d, "num_local_experts", "num_experts_per_tok")
    yarn = {
        "rope_type": "yarn", "rope_theta": d.one(1000.0, 150000.0), "factor": d.one(2.0, 4.0), "beta_fast": d.one(32.0, 16.0),
        "beta_slow": d.one(1.0, 2.0), "truncate": d.one(True, False), "original_max_position_embeddings": 64,
    }  # fmt: skip
    other = {
        "rms_norm_eps": 1e-2,
        "swiglu_limit": 0.5,
        "swiglu_alpha": 1.0,
        "layer_types": ["full_attention"] * sizes["num_hidden_layers"],
    }
    return sizes | {"sliding_window": d.one(5, 16), "rope_parameters": yarn, "rms_norm_eps": 1e-5} | d.rarely(**other)


def _glm4_moe(d: Draw) -> Sizes:
    more = {
        "first_k_dense_replace": d.one(0, 1),
        "use_qk_norm": d.one(True, False),
        "attention_bias": d.one(True, False),
    }
    return body(d) | groups(d) | more


def _ernie_moe(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | experts(d, "moe_num_experts", "moe_k", "moe_intermediate_size")
    layers = sizes["num_hidden_layers"]
    return sizes | {
        "moe_num_shared_experts": d.one(0, 1, 2),
        "moe_layer_start_index": d.one(0, layers - 1),
        "moe_layer_interval": d.one(1, 2),
        **d.rarely(use_bias=True),
    }


# -- latent attention --------------------------------------------------------------------------------------------------

SMALL = {"rms_norm_eps": 1e-6}
"""What transformers' norms of latents add, whatever config.json says; vLLM's add what it says."""


def _deepseek_v2(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | SMALL | latent(d) | groups(d) | yarn(d)
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    sizes["topk_method"] = "greedy" if sizes["n_group"] == 1 else "group_limited_greedy"
    more = {"first_k_dense_replace": d.one(0, 1), "norm_topk_prob": False}  # transformers leaves norm_topk_prob out
    return sizes | more | d.rarely(attention_bias=True, mlp_bias=True)


def _deepseek_v3(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | SMALL | latent(d) | groups(d) | yarn(d)
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return sizes | {"first_k_dense_replace": d.one(0, 1)} | d.rarely(attention_bias=True, rope_interleave=False)


def _minicpm3(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False) | SMALL | latent(d) | {"q_lora_rank": 24}
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    scales = {"scale_emb": d.one(1, 12), "scale_depth": d.one(1.4, 0.5), "dim_model_base": d.one(8, 32)}
    return sizes | scales | d.rarely(attention_bias=True)


# -- states ------------------------------------------------------------------------------------------------------------


def _mamba(d: Draw) -> Sizes:
    return {
        **IDS, "vocab_size": d.one(320, 333), "hidden_size": d.one(32, 48), "num_hidden_layers": d.one(1, 2), "state_size": d.one(4, 8, 12),
        "conv_kernel": d.one(2, 3, 4), "expand": d.one(1, 2), "time_step_rank": d.one(3, 4), "use_bias": d.one(True, False),
        "use_conv_bias": d.one(True, False), "layer_norm_epsilon": d.one(1e-5, 1e-2), "tie_word_embeddings": d.one(True, False),
    }  # fmt: skip


def _mamba2(d: Draw) -> Sizes:
    sizes = ssd(d, ("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel", "chunk_size"))
    sizes["n_groups"] = 1  # with more, transformers norms them together
    expand = d.one(1, 2)
    return sizes | {
        **IDS, "vocab_size": d.one(320, 333), "hidden_size": sizes["num_heads"] * sizes["head_dim"] // expand, "expand": expand,
        "num_hidden_layers": d.one(1, 2), "use_bias": d.one(True, False), "use_conv_bias": d.one(True, False),
        "layer_norm_epsilon": d.one(1e-5, 1e-2), "tie_word_embeddings": d.one(True, False), **d.rarely(time_step_limit=[0.5, 0.7]),
    }  # fmt: skip


def _states(d: Draw) -> Sizes:
    """Mamba 2's layers beside a model's own."""
    sizes = ssd(d, SSD)
    return sizes | {"mamba_conv_bias": d.one(True, False), "mamba_proj_bias": d.one(True, False)}


def _falcon_h1(d: Draw) -> Sizes:
    sizes = body(d) | _states(d) | rope(d)
    sizes["mamba_d_ssm"] = sizes["mamba_n_heads"] * sizes["mamba_d_head"]
    factors = [
        f"{one}_multiplier"
        for one in ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
    ]
    ignored = {"attention_bias": True, "mlp_bias": True, "projectors_bias": True, "time_step_limit": [0.5, 0.7]}
    return (
        sizes
        | {name: d.one(1.0, 0.6, 1.7) for name in factors}
        | {
            "mlp_multipliers": [d.one(1.0, 0.6), d.one(1.0, 1.7)],
            "ssm_multipliers": [d.one(1.0, 0.6, 1.7) for _ in range(5)],
            "projectors_bias": sizes["mamba_proj_bias"],
            "mamba_rms_norm": d.one(True, False),
            "mamba_norm_before_gate": False,
            **d.rarely(**ignored, mamba_norm_before_gate=True),
        }
    )


def _granite_hybrid(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False, layers=3) | _states(d) | multipliers(d) | rope(d)
    sizes |= experts(d, "num_local_experts", "num_experts_per_tok")
    sizes["hidden_size"] = sizes["num_attention_heads"] * 16
    sizes["mamba_n_heads"] = 4
    sizes["mamba_n_groups"] = 1  # with more, transformers norms them together
    sizes["mamba_d_head"] = sizes["hidden_size"] // 4
    sizes["mamba_expand"] = 1
    return sizes | {
        "layer_types": d.kinds(3, "linear_attention", "full_attention"),
        "shared_intermediate_size": d.one(24, 40),
        "position_embedding_type": d.one("rope", None),
        "attention_bias": d.one(True, False),
        **d.rarely(time_step_limit=[0.5, 0.7]),
    }


def _nemotron_h(d: Draw) -> Sizes:
    sizes = (
        body(d)
        | ssd(d, ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "chunk_size"))
        | groups(d)
    )
    sizes.pop("num_hidden_layers")
    sizes["layer_norm_epsilon"] = sizes.pop("rms_norm_eps")
    return sizes | {
        "layers_block_type": d.kinds(5, "linear_attention", "mlp", "full_attention", "moe"),
        "moe_shared_expert_intermediate_size": d.one(24, 40),
        "moe_latent_size": d.one(None, None, 16),
        "use_bias": d.one(True, False),
        "use_conv_bias": d.one(True, False),
        "n_shared_experts": 1,
        "time_step_min": 1e-30,  # transformers' least step, which vLLM has not
        **d.rarely(attention_bias=True, mlp_bias=True),
    }


def _jamba(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False, layers=4)
    sizes |= {"num_experts": d.one(1, 4), "num_experts_per_tok": 1}
    return sizes | {
        "attn_layer_period": 2, "attn_layer_offset": d.one(0, 1), "expert_layer_period": 2, "expert_layer_offset": d.one(0, 1),
        "mamba_d_state": d.one(4, 8), "mamba_d_conv": d.one(2, 4), "mamba_expand": d.one(1, 2), "mamba_dt_rank": d.one(3, 4),
        "mamba_conv_bias": d.one(True, False), "mamba_proj_bias": d.one(True, False),
    }  # fmt: skip


def _lfm2(d: Draw) -> Sizes:
    sizes = body(d, head_dim=False, layers=3) | rope(d)
    sizes["norm_eps"] = sizes.pop("rms_norm_eps")
    return sizes | {
        "layer_types": d.kinds(3, "conv", "full_attention"),
        "conv_L_cache": d.one(2, 3, 4),
        "conv_bias": d.one(True, False),
        "block_auto_adjust_ff_dim": d.one(True, False),
        "block_multiple_of": d.one(8, 16),
        "block_ffn_dim_multiplier": d.one(1.0, 1.3),
    }


def _lfm2_moe(d: Draw) -> Sizes:
    sizes = (
        body(d, head_dim=False, layers=3)
        | rope(d)
        | experts(d, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    )
    sizes["norm_eps"] = sizes.pop("rms_norm_eps")
    return sizes | {
        "layer_types": d.kinds(3, "conv", "full_attention"),
        "conv_L_cache": d.one(2, 3, 4),
        "num_dense_layers": d.one(0, 1),
        "use_expert_bias": d.one(True, False),
        "norm_topk_prob": d.one(True, False),
        "routed_scaling_factor": d.one(1.0, 2.5),
    }


def _gated_delta(d: Draw) -> Sizes:
    keys = d.one(1, 2)
    return {
        "linear_num_key_heads": keys, "linear_num_value_heads": keys * d.one(1, 2), "linear_key_head_dim": d.one(8, 16),
        "linear_value_head_dim": d.one(8, 16), "linear_conv_kernel_dim": d.one(2, 4),
    }  # fmt: skip


def _qwen3_next(d: Draw) -> Sizes:
    sizes = body(d, layers=3) | _gated_delta(d) | rope(d, partial=True)
    sizes |= experts(d, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    return sizes | {
        "layer_types": d.kinds(3, "linear_attention", "full_attention"),
        "shared_expert_intermediate_size": d.one(24, 40),
        "norm_topk_prob": d.one(True, False),
        "mlp_only_layers": d.one([], [0]),
        **d.rarely(attention_bias=True),
    }


def _qwen3_5(d: Draw) -> Sizes:
    sizes = body(d, layers=3) | _gated_delta(d) | rope(d, partial=True)
    return sizes | {"layer_types": d.kinds(3, "linear_attention", "full_attention")} | d.rarely(attention_bias=True)


FAMILIES: Mapping[str, tuple[str, Callable[[Draw], Sizes]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _llama),
    "Qwen2ForCausalLM": ("Qwen2Config", _qwen2),
    "Qwen3ForCausalLM": ("Qwen3Config", _qwen3),
    "MistralForCausalLM": ("MistralConfig", _mistral),
    "GemmaForCausalLM": ("GemmaConfig", _gemma),
    "Gemma2ForCausalLM": ("Gemma2Config", _gemma2),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", _gemma3),
    "Phi3ForCausalLM": ("Phi3Config", _phi3),
    "GraniteForCausalLM": ("GraniteConfig", _granite),
    "Glm4ForCausalLM": ("Glm4Config", _glm4),
    "NemotronForCausalLM": ("NemotronConfig", _nemotron),
    "StableLmForCausalLM": ("StableLmConfig", _stablelm),
    "Exaone4ForCausalLM": ("Exaone4Config", _exaone4),
    "CohereForCausalLM": ("CohereConfig", _cohere),
    "Olmo2ForCausalLM": ("Olmo2Config", _olmo2),
    "MixtralForCausalLM": ("MixtralConfig", _mixtral),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", _qwen2_moe),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", _qwen3_moe),
    "OlmoeForCausalLM": ("OlmoeConfig", _olmoe),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", _granite_moe),
    "GptOssForCausalLM": ("GptOssConfig", _gpt_oss),
    "Glm4MoeForCausalLM": ("Glm4MoeConfig", _glm4_moe),
    "Ernie4_5_MoeForCausalLM": ("Ernie4_5_MoeConfig", _ernie_moe),
    "DeepseekV2ForCausalLM": ("DeepseekV2Config", _deepseek_v2),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", _deepseek_v3),
    "MiniCPM3ForCausalLM": ("MiniCPM3Config", _minicpm3),
    "MambaForCausalLM": ("MambaConfig", _mamba),
    "Mamba2ForCausalLM": ("Mamba2Config", _mamba2),
    "FalconH1ForCausalLM": ("FalconH1Config", _falcon_h1),
    "GraniteMoeHybridForCausalLM": ("GraniteMoeHybridConfig", _granite_hybrid),
    "NemotronHForCausalLM": ("NemotronHConfig", _nemotron_h),
    "JambaForCausalLM": ("JambaConfig", _jamba),
    "Lfm2ForCausalLM": ("Lfm2Config", _lfm2),
    "Lfm2MoeForCausalLM": ("Lfm2MoeConfig", _lfm2_moe),
    "Qwen3NextForCausalLM": ("Qwen3NextConfig", _qwen3_next),
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", _qwen3_5),
}
"""vLLM's name -> transformers' class of the config, and its arguments for a draw."""
