"""What config.json says of text architectures that vLLM has and transformers has not, beyond Llama's keys: as published ones, small."""

from __future__ import annotations

from typing import Any

HEAD = {"head_dim": 16}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
BAILING = {
    **HEAD, **EXPERTS, "embedding_dropout": 0.0, "output_dropout": 0.0, "use_bias": False, "use_qkv_bias": False, "norm_topk_prob": True,
    "moe_shared_expert_intermediate_size": 32, "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "n_group": 1, "topk_group": 1,
}  # fmt: skip
CHATGLM = {
    "model_type": "chatglm", "num_layers": 2, "padded_vocab_size": 320, "hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16,
    "num_attention_heads": 4, "seq_length": 256, "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True,
    "original_rope": True, "tie_word_embeddings": False,
}  # fmt: skip
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, **HEAD}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
MUP = {"dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12}
MIMO = {
    **HEAD, **ROUTED, "v_head_dim": 16, "swa_head_dim": 16, "swa_v_head_dim": 16, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "hybrid_layer_pattern": [0, 1], "moe_layer_freq": [0, 1], "layernorm_epsilon": 1e-6, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "sliding_window": 16, "sliding_window_size": 16, "n_shared_experts": None,
}  # fmt: skip

ALONE: dict[str, dict[str, Any]] = {
    "BailingMoeForCausalLM": BAILING,
    "BailingMoeV2ForCausalLM": {**BAILING, "use_qk_norm": True},
    "BailingMoeV2_5ForCausalLM": {**BAILING, "layer_group_size": 2, **LATENT},
    "BailingMoeV3ForCausalLM": {**BAILING, "layer_group_size": 2, "short_conv_kernel_size": 4, "no_kda_lora": True, **LATENT},
    "ChatGLMModel": CHATGLM,
    "ChatGLMForConditionalGeneration": CHATGLM,
    "DeciLMForCausalLM": {
        "model_type": "nemotron-nas",
        "block_configs": [
            {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 2.0}},
            {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 1.0}},
        ],
    },
    "DeepseekForCausalLM": {**ROUTED, "moe_layer_freq": 1, "norm_topk_prob": False},
    "ExaoneForCausalLM": {"activation_function": "silu", "layer_norm_epsilon": 1e-6},
    "ExaoneMoEForCausalLM": {**EXPERTS, **WINDOWS, "model_type": "exaone_moe", "n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]},
    "Rnj1ForCausalLM": {
        **WINDOWS, "attention_bias": False, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16,
    },
    "K2HorizonForCausalLM": {
        **HEAD, **EXPERTS, "attention_bias": False, "attention_gate_func": None, "decoder_sparse_step": 1, "layernorm_num_groups": 1,
        "mlp_only_layers": [], "moe_gate_bias": False, "mova_num_experts": 0, "mova_num_experts_per_tok": 0, "norm_topk_prob": True,
        "query_key_norm": True, "rope_head_dim": 16, "router_scaling_factor": 1.0, "router_score_func": "sigmoid",
    },
    "MiniCPMForCausalLM": MUP,
    "MistralLarge3ForCausalLM": {**ROUTED, **LATENT, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1},
    "MiMoV2ForCausalLM": MIMO,
    "PanguProMoEV2ForCausalLM": {**ROUTED, **HEAD, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "qkv_bias": True},
    "PanguUltraMoEForCausalLM": {**ROUTED, **LATENT, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "sandwich_norm": True},
    "Param2MoEForCausalLM": {**BAILING, "rope_theta": 10000.0, "rope_scaling": None},
    "Plamo3ForCausalLM": {**WINDOWS, "interleaved_sliding_window": [16, None], "rope_local_theta": 10000.0},
    "SarvamMoEForCausalLM": BAILING,
    "SarvamMLAForCausalLM": {**BAILING, **LATENT, "q_lora_rank": None},
    "SolarForCausalLM": {"num_hidden_layers": 4, "bskcn_1": [1], "bskcn_2": [2], "bskcn_3": [3], "bskcn_4": [3], "bskcn_tv": [0.9, 0.8]},
    "LlamaBidirectionalModel": {"pooling": "avg"},
    "LlamaBidirectionalForSequenceClassification": {"pooling": "avg", "num_labels": 3},
    "Step3TextForCausalLM": {
        **HEAD, "moe_num_experts": 4, "moe_top_k": 2, "moe_intermediate_size": 32, "share_expert_dim": 32, "share_q_dim": 32, "max_position_embedding": 256,
        "norm_expert_weight": True, "moe_layers_enum": "1",
    },
    "Step3p5ForCausalLM": {
        "model_type": "step3p5", **WINDOWS, "moe_num_experts": 4, "moe_top_k": 2, "moe_intermediate_size": 32, "share_expert_dim": 32,
        "num_attention_groups": 2, "attention_other_setting": {
            "attention_type": "sliding_attention", "num_attention_heads": 4, "num_attention_groups": 2, "head_dim": 16},
        "moe_router_scaling_factor": 1.0, "need_fp32_gate": True, "norm_expert_weight": True, "swiglu_limits": None, "swiglu_limits_shared": None,
        "use_moe_router_bias": True, "moe_layers_enum": "1", "att_impl_type": "GQA", "yarn_only_types": [],
    },
    "TeleChat2ForCausalLM": {"ffn_hidden_size": 128, "n_layer": 2, "n_head": 4, "bias": False, "layer_norm_epsilon": 1e-6, "n_inner": 128},
    "TeleFLMForCausalLM": {"use_mup": True, "mup_scale_factor": 4.0, "output_mult": 1.0, "input_mult": 1.0},
}  # fmt: skip

BORROWED = {
    "BertSpladeSparseEmbeddingModel": "BertConfig",
    "BgeM3EmbeddingModel": "XLMRobertaConfig",
    "DeepseekV3BidirectionalModel": "DeepseekV3Config",
    "ColBERTModernBertModel": "ModernBertConfig",
    "ColBERTJinaRobertaModel": "XLMRobertaConfig",
    "ColBERTLfm2Model": "Lfm2Config",
    "HF_ColBERT": "BertConfig",
    "GteNewModel": "GteConfig",
    "GteNewForSequenceClassification": "GteConfig",
    "NemotronHPuzzleForCausalLM": "NemotronHConfig",
    "Qwen2ForRewardModel": "Qwen2Config",
    "Qwen2ForProcessRewardModel": "Qwen2Config",
    "JinaForRanking": "Qwen3Config",
    "TransformersMoEForCausalLM": "MixtralConfig",
    "TransformersMoEEmbeddingModel": "MixtralConfig",
    "TransformersMoEForSequenceClassification": "MixtralConfig",
}
"""Architectures of vLLM's that take the config of another class of transformers."""
MORE: dict[str, dict[str, Any]] = {"ColBERTJinaRobertaModel": {"position_embedding_type": "rotary"}}
"""What vLLM reads of a config, and transformers' class does not write."""
