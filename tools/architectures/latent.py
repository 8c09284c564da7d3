"""Decoders with latent attention, with or without an indexer that chooses what is attended to."""

from __future__ import annotations

from .experts import ROUTED
from .small import SIZES, Architecture

SIZES_MLA = {
    **SIZES, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
INDEXER = {"index_topk": 32, "index_head_dim": 16, "index_n_heads": 16}
"""With few heads many scores are 0, and the libraries choose differently among equal ones."""
SPARSE = {
    **{name: size for name, size in ROUTED.items() if name != "first_k_dense_replace"},
    "mlp_layer_types": ["dense", "sparse"],
}

LATENT = (
    Architecture("AXK1ForCausalLM", "AXK1Config", {**SIZES_MLA, **ROUTED}),
    Architecture("DeepseekV2ForCausalLM", "DeepseekV2Config", {**SIZES_MLA, **ROUTED, "topk_method": "group_limited_greedy"}),
    Architecture("DeepseekV3ForCausalLM", "DeepseekV3Config", {**SIZES_MLA, **ROUTED}),
    Architecture("DeepseekV32ForCausalLM", "DeepseekV32Config", {**SIZES_MLA, **SPARSE, **INDEXER}),
    Architecture("DeepseekV4ForCausalLM", "DeepseekV4Config", {
        **{name: size for name, size in SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")},
        "head_dim": 16, "qk_rope_head_dim": 8, "q_lora_rank": 24, "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "num_hidden_layers": 4, "o_groups": 2, "o_lora_rank": 16, "sliding_window": 16, "hc_mult": 2, "index_topk": 8, "index_head_dim": 16,
        "index_n_heads": 2,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2, "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    }, written={
        "layer_types": None, "mlp_layer_types": None, "compress_ratios": [128, 4, 128, 4], "num_hash_layers": 1, "qk_rope_head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }),
    Architecture("Glm4MoeLiteForCausalLM", "Glm4MoeLiteConfig", {**SIZES_MLA, **SPARSE}),
    Architecture("GlmMoeDsaForCausalLM", "GlmMoeDsaConfig", {**SIZES_MLA, **SPARSE, **INDEXER}),
    Architecture("HYV4ForCausalLM", "HYV4Config", {
        **SIZES_MLA, **SPARSE, **INDEXER, "n_group": 1, "topk_group": 1, "indexer_types": ["full", "shared"], "hc_mult": 2,
    }, renamed={
        ".hc_pre.hc_attn_layer.": ".hc_attn_layer.hc_pre.", ".hc_pre.hc_mlp_layer.": ".hc_mlp_layer.hc_pre.",
        "mlp.linear_gate": "mlp.gate_proj", "shared_experts.linear_gate": "shared_experts.gate_proj",
        ".hc_pre.hc_head.": ".hc_head.",
    }),
    Architecture("LongcatFlashForCausalLM", "LongcatFlashConfig", {
        **{name: size for name, size in SIZES_MLA.items() if name not in ("intermediate_size", "num_hidden_layers")},
        "num_layers": 2, "ffn_hidden_size": 128, "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 32,
        "head_dim": 8,
    }),
    Architecture("MiniCPM3ForCausalLM", "MiniCPM3Config", {**SIZES_MLA, "dim_model_base": 32}),
    Architecture("YoutuForCausalLM", "YoutuConfig", SIZES_MLA),  # through the Transformers backend
)  # fmt: skip
