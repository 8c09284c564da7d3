"""Decoders that vLLM runs through its Transformers backend: those that its registry names for it, and others."""

from __future__ import annotations

from .dense import GEMMA, GPT, OLD
from .small import HEADS, ROPE, SIZES, WINDOW, Architecture

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

BACKEND = (
    Architecture("ArceeForCausalLM", "ArceeConfig", SIZES),
    Architecture("CwmForCausalLM", "CwmConfig", {**SIZES, **WINDOW, "rope_parameters": ROPE}),
    Architecture("FlexOlmoForCausalLM", "FlexOlmoConfig", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    Architecture("GlmForCausalLM", "GlmConfig", {**SIZES, "head_dim": 16}),
    Architecture("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
    Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", HEADS),
    Architecture("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", {**SIZES, "head_dim": 16}),
    Architecture("HunYuanMoEV1ForCausalLM", "HunYuanMoEV1Config", {**SIZES, "head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    Architecture("Jais2ForCausalLM", "Jais2Config", SIZES),
    Architecture("MellumForCausalLM", "MellumConfig", {**SIZES, **EXPERTS, "head_dim": 16}),
    Architecture("OlmoForCausalLM", "OlmoConfig", SIZES),
    Architecture("Olmo2ForCausalLM", "Olmo2Config", SIZES),
    Architecture("Olmo3ForCausalLM", "Olmo3Config", {**SIZES, "sliding_window": 16, "num_hidden_layers": 4}),
    Architecture("PhiForCausalLM", "PhiConfig", SIZES),
    Architecture("SeedOssForCausalLM", "SeedOssConfig", {**SIZES, "head_dim": 16}),
    Architecture("SmolLM3ForCausalLM", "SmolLM3Config", SIZES),
    Architecture("Starcoder2ForCausalLM", "Starcoder2Config", {**SIZES, "sliding_window": 16}),
    Architecture("VaultGemmaForCausalLM", "VaultGemmaConfig", {**GEMMA, "num_hidden_layers": 4}, attention="eager"),
    # in no registry of vLLM's
    Architecture("BioGptForCausalLM", "BioGptConfig", {
        **OLD, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 256,
    }),
    Architecture("BitNetForCausalLM", "BitNetConfig", SIZES),
    Architecture("Dots1ForCausalLM", "Dots1Config", {
        **SIZES, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "head_dim": 16,
    }),
    Architecture("HeliumForCausalLM", "HeliumConfig", {**SIZES, "head_dim": 16}),
    Architecture("MinistralForCausalLM", "MinistralConfig", {**SIZES, **WINDOW, "num_hidden_layers": 4}),
    Architecture("NanoChatForCausalLM", "NanoChatConfig", SIZES),
    Architecture("PersimmonForCausalLM", "PersimmonConfig", HEADS),
)  # fmt: skip
