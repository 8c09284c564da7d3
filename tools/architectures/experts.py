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
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

MIXTURES = (
    Architecture("AfmoeForCausalLM", "AfmoeConfig", {
        **SIZES, **EXPERTS, **WINDOW, "num_hidden_layers": 4, "num_shared_experts": 1, "num_dense_layers": 1, "route_scale": 1.5,
    }),
    Architecture("Cohere2MoeForCausalLM", "Cohere2MoeConfig", {
        **SIZES, **WINDOW, "sliding_window": 17, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2,
    }, written={"sliding_window": 16}, note=COHERE_WINDOW),
    Architecture("DbrxForCausalLM", "DbrxConfig", {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 320,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    }),
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
    Architecture("HYV3ForCausalLM", "HYV3Config", {**SIZES, **EXPERTS, **SPARSE_AFTER_ONE, "head_dim": 16}),
    Architecture("LagunaForCausalLM", "LagunaConfig", {
        **SIZES, **EXPERTS, **ALTERNATING, **SPARSE_AFTER_ONE, "head_dim": 16, "shared_expert_intermediate_size": 32,
        "num_attention_heads_per_layer": [4, 4],
    }),
    Architecture("Llama4ForCausalLM", "Llama4TextConfig", {
        **SIZES, "num_hidden_layers": 4, "num_local_experts": 4, "head_dim": 16, "intermediate_size_mlp": 128, "attention_chunk_size": 32,
    }),
    Architecture("MiMoV2FlashForCausalLM", "MiMoV2FlashConfig", {
        **SIZES, **WINDOW, "head_dim": 24, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "layer_types": ["full_attention", "sliding_attention"], **SPARSE_AFTER_ONE,
        "rope_parameters": {kind: {**ROPE, "partial_rotary_factor": 0.5} for kind in ("full_attention", "sliding_attention")},
    }),
    Architecture("MiniMaxM2ForCausalLM", "MiniMaxM2Config", {**SIZES, **LOCAL, "head_dim": 16, "rotary_dim": 8}),
    Architecture("MixtralForCausalLM", "MixtralConfig", {**SIZES, **LOCAL}),
    Architecture("OlmoeForCausalLM", "OlmoeConfig", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    Architecture("PhiMoEForCausalLM", "PhimoeConfig", {**SIZES, **LOCAL, "attention_bias": True}),
    Architecture("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 32}),
    Architecture("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SIZES, **EXPERTS, "head_dim": 16}),
)  # fmt: skip
