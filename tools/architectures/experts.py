"""Decoders with mixtures of experts and plain attention."""

from __future__ import annotations

from .dense import COHERE_WINDOW
from .small import MULTIPLIERS, ROPE, SIZES, WINDOW, Architecture

LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
GRANITE = {**SIZES, **MULTIPLIERS, **LOCAL}
SPARSE_AFTER_ONE = {"mlp_layer_types": ["dense", "sparse"]}
SIGMOID = {"scoring_func": "sigmoid", "use_routing_bias": True}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

MIXTURES = (
    Architecture("AfmoeForCausalLM", "AfmoeConfig", {
        **SIZES, **EXPERTS, **WINDOW, "num_hidden_layers": 4, "num_shared_experts": 1, "num_dense_layers": 1, "route_scale": 1.5,
    }, written={"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1}),
    Architecture("Cohere2MoeForCausalLM", "Cohere2MoeConfig", {
        **SIZES, **WINDOW, "sliding_window": 17, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2,
    }, written={"sliding_window": 16}, note=COHERE_WINDOW),
    Architecture("DbrxForCausalLM", "DbrxConfig", {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 320,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    }, renamed={".ffn.experts.mlp.": ".ffn.experts.routed_experts.mlp."},
       note="vLLM looks for its own parameter under a name of before (dbrx.py:406), so that published weights cannot be read: renamed in the files"),
    Architecture("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeConfig", {
        **SIZES, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1, "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    }),
    Architecture("ExaoneMoeForCausalLM", "ExaoneMoeConfig", {**SIZES, **EXPERTS, **ALTERNATING, **SPARSE_AFTER_ONE, "head_dim": 16}),
    Architecture("Glm4MoeForCausalLM", "Glm4MoeConfig", {**SIZES, **ROUTED, "head_dim": 16}),
    Architecture("GptOssForCausalLM", "GptOssConfig", {**SIZES, **LOCAL, **WINDOW}),  # vLLM wants YaRN, which is the default
    Architecture("GraniteMoeForCausalLM", "GraniteMoeConfig", GRANITE),
    Architecture("GraniteMoeSharedForCausalLM", "GraniteMoeSharedConfig", {**GRANITE, "shared_intermediate_size": 32}),
    Architecture("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig", {**GRANITE, "shared_intermediate_size": 32, "sliding_window": 16}),
    Architecture("HYV3ForCausalLM", "HYV3Config", {**SIZES, **EXPERTS, **SPARSE_AFTER_ONE, "head_dim": 16}, written={
        "first_k_dense_replace": 1, "expert_hidden_dim": 32, "route_norm": True, "qk_norm": True,
    }),
    Architecture("LagunaForCausalLM", "LagunaConfig", {
        **SIZES, **EXPERTS, **ALTERNATING, **SPARSE_AFTER_ONE, "head_dim": 16, "shared_expert_intermediate_size": 32,
        "num_attention_heads_per_layer": [4, 4],
    }),
    Architecture("Llama4ForCausalLM", "Llama4TextConfig", {
        **SIZES, "num_hidden_layers": 4, "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 128, "attention_chunk_size": 32,
        "attn_temperature_tuning": False,  # vLLM asks the generation config (llama4.py:715)
    }),
    Architecture("MiMoV2FlashForCausalLM", "MiMoV2FlashConfig", {
        **SIZES, **WINDOW, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"], **SPARSE_AFTER_ONE,
        "rope_parameters": {kind: {**ROPE, "partial_rotary_factor": 0.5} for kind in ("full_attention", "sliding_attention")},
    }, written={
        "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "layernorm_epsilon": 1e-5, "rope_theta": 10000.0, "swa_rope_theta": 10000.0,
        "partial_rotary_factor": 0.5, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_v_head_dim": 16,
        "sliding_window_size": 16, "add_swa_attention_sink_bias": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    }),
    Architecture("MiniMaxM2ForCausalLM", "MiniMaxM2Config", {**SIZES, **LOCAL, "head_dim": 16, "rotary_dim": 8}, written=SIGMOID),
    Architecture("MixtralForCausalLM", "MixtralConfig", {**SIZES, **LOCAL}),
    Architecture("OlmoeForCausalLM", "OlmoeConfig", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    Architecture("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 32}),
    Architecture("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SIZES, **EXPERTS, "head_dim": 16}),
)  # fmt: skip
