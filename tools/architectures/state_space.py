"""Decoders that keep a state: all layers of them, or some beside attention (hybrids)."""

from __future__ import annotations

from .experts import EXPERTS, GRANITE
from .latent import SIZES_MLA
from .small import SIZES, Architecture

MAMBA = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "state_size": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SSD = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
EVERY_OTHER = {"layer_types": ["linear_attention", "full_attention"]}

STATE_SPACE = (
    Architecture("FalconMambaForCausalLM", "FalconMambaConfig", {**MAMBA, "time_step_rank": 4}),
    Architecture("MambaForCausalLM", "MambaConfig", {**MAMBA, "time_step_rank": 4}),
    Architecture("Mamba2ForCausalLM", "Mamba2Config", {**MAMBA, "state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}),
)  # fmt: skip

HYBRIDS = (
    Architecture("FalconH1ForCausalLM", "FalconH1Config", {**SIZES, **SSD, "mamba_d_ssm": 128, "head_dim": 16}),
    Architecture("GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig", {
        **GRANITE, **SSD, **EVERY_OTHER, "shared_intermediate_size": 32, "position_embedding_type": "rope",
    }),
    Architecture("InklingForCausalLM", "InklingTextConfig", {
        **SIZES, "head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "sliding_window_size": 16, "d_rel": 8,
        "rel_extent": 64, "layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 32,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "logits_mup_width_multiplier": 2.0,
    }, written={
        "model_type": "inkling_model", "sconv_kernel_size": 4, "dense_intermediate_size": 128, "dense_mlp_idx": 1, "local_layer_ids": [0],
        "padded_vocab_size": 320,
    }),
    Architecture("JambaForCausalLM", "JambaConfig", {
        **SIZES, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "num_hidden_layers": 4, "use_mamba_kernels": False,
    }),
    Architecture("KimiLinearForCausalLM", "KimiLinearConfig", {
        **{name: size for name, size in SIZES_MLA.items() if name != "max_position_embeddings"}, "q_lora_rank": None, "moe_intermediate_size": 32,
        "num_experts": 4, "num_experts_per_token": 2, "model_max_length": 256, "linear_head_dim": 16, "linear_num_heads": 4,
        "mlp_layer_types": ["dense", "sparse"], **EVERY_OTHER,
    }),
    Architecture("Lfm2ForCausalLM", "Lfm2Config", {**SIZES, "layer_types": ["conv", "full_attention"]}),
    Architecture("Lfm2MoeForCausalLM", "Lfm2MoeConfig", {**SIZES, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Architecture("NemotronHForCausalLM", "NemotronHConfig", {
        **{name: size for name, size in SIZES.items() if name != "num_hidden_layers"},
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"], "head_dim": 16, "ssm_state_size": 16, "mamba_num_heads": 8,
        "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32, "use_mamba_kernels": False,
    }),
    Architecture("OlmoHybridForCausalLM", "OlmoHybridConfig", {**SIZES, **DELTA, **EVERY_OTHER, "linear_num_key_heads": 4}),
    Architecture("Qwen3NextForCausalLM", "Qwen3NextConfig", {
        **SIZES, **EXPERTS, **DELTA, **EVERY_OTHER, "head_dim": 16, "shared_expert_intermediate_size": 32,
    }),
    Architecture("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", {**SIZES, **DELTA, **EVERY_OTHER, "head_dim": 16}),
    Architecture("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig", {
        **SIZES, **EXPERTS, **DELTA, **EVERY_OTHER, "head_dim": 16, "shared_expert_intermediate_size": 32,
    }),
    Architecture("Qwen4ExpForCausalLM", "Qwen4ExpTextConfig", {
        **SIZES, **EXPERTS, **DELTA, "layer_types": ["linear_attention", "indexed_attention"], "head_dim": 16, "shared_expert_intermediate_size": 32,
        "hc_count": 2, "hc_lowrank": 16, "ple_embed_dim": 16, "ngram_vocab_size_base": 100, "split_ngram_parts": 1, "heads_per_ngram": 2,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32, "indexer_compress_ratio": 4,
        "output_gate_type": "silu",
    }),
    Architecture("Zamba2ForCausalLM", "Zamba2Config", {
        **SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_d_state": 16,
        "n_mamba_heads": 8, "mamba_headdim": 16, "chunk_size": 16, "use_mamba_kernels": False, "adapter_rank": 8, "use_mem_rope": True,
    }),
)  # fmt: skip
