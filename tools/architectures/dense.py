"""Decoders of attention and dense layers."""

from __future__ import annotations

from .small import HEADS, MULTIPLIERS, SIZES, WINDOW, Architecture

OLD = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **OLD}
PLAIN = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **OLD}
GEMMA = {**SIZES, **WINDOW, "query_pre_attn_scalar": 16}

COHERE_WINDOW = (
    "a window of n sees n + 1 keys in vLLM (commandr.py:244, cohere2_moe.py:213) and n in transformers (masking_utils.py:100): "
    "config.json says 16, transformers is told 17"
)
DENSE = (
    Architecture("ApertusForCausalLM", "ApertusConfig", SIZES),
    Architecture("BloomForCausalLM", "BloomConfig", {**OLD, "hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 256},
                 tolerance=2e-3, note="GELU is exact in vLLM (bloom.py:165) and approximated by tanh in transformers (modeling_bloom.py:111)"),
    Architecture("CohereForCausalLM", "CohereConfig", SIZES),
    Architecture("Cohere2ForCausalLM", "Cohere2Config", {**SIZES, **WINDOW, "sliding_window": 17, "num_hidden_layers": 4},
                 written={"sliding_window": 16}, note=COHERE_WINDOW),
    Architecture("Ernie4_5ForCausalLM", "Ernie4_5Config", SIZES),
    Architecture("Exaone4ForCausalLM", "Exaone4Config", {**SIZES, "sliding_window": 16, "sliding_window_pattern": 2}),
    Architecture("FalconForCausalLM", "FalconConfig", {**PLAIN, "new_decoder_architecture": False, "multi_query": True, "max_position_embeddings": 256}),
    Architecture("GemmaForCausalLM", "GemmaConfig", {**SIZES, "head_dim": 16}),
    Architecture("Gemma2ForCausalLM", "Gemma2Config", {**GEMMA, "num_hidden_layers": 4}, attention="eager"),
    Architecture("Gemma3ForCausalLM", "Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 6}),
    Architecture("Gemma3nForCausalLM", "Gemma3nTextConfig", {
        **SIZES, **WINDOW, "num_hidden_layers": 10, "intermediate_size": [128] * 10, "num_kv_shared_layers": 5, "laurel_rank": 8,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 8, "rms_norm_eps": 1e-10,
    }),
    Architecture("Gemma4ForCausalLM", "Gemma4TextConfig", {**SIZES, **WINDOW, "num_hidden_layers": 6}),
    Architecture("Glm4ForCausalLM", "Glm4Config", {**SIZES, "head_dim": 16}),
    Architecture("GPT2LMHeadModel", "GPT2Config", GPT),
    Architecture("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 8}),
    Architecture("GraniteForCausalLM", "GraniteConfig", {**SIZES, **MULTIPLIERS}),
    Architecture("GraniteSWAForCausalLM", "GraniteSWAConfig", {**SIZES, **MULTIPLIERS, "sliding_window": 16}),
    Architecture("HrmTextForCausalLM", "HrmTextConfig", {**HEADS, "num_hidden_layers": 4, "num_layers_per_stack": 2, "head_dim": 16, "prefix_lm": False}),
    Architecture("HyperCLOVAXForCausalLM", "HyperCLOVAXConfig", SIZES),
    Architecture("LlamaForCausalLM", "LlamaConfig", SIZES),
    Architecture("Ministral3ForCausalLM", "Ministral3Config", {**SIZES, "head_dim": 16}),
    Architecture("MistralForCausalLM", "MistralConfig", {**SIZES, **WINDOW}),
    Architecture("NemotronForCausalLM", "NemotronConfig", {**SIZES, "head_dim": 16}),
    Architecture("OPTForCausalLM", "OPTConfig", {**PLAIN, "ffn_dim": 128, "max_position_embeddings": 256, "word_embed_proj_dim": 64, "pad_token_id": 0}),
    Architecture("Phi3ForCausalLM", "Phi3Config", SIZES),
    Architecture("Qwen2ForCausalLM", "Qwen2Config", SIZES),
    Architecture("Qwen3ForCausalLM", "Qwen3Config", {**SIZES, "head_dim": 16}),
    Architecture("StableLmForCausalLM", "StableLmConfig", SIZES),
)  # fmt: skip
