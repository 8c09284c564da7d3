"""Small mixtures of experts with random weights, a kind of router each, and transformers' logits.

`python expert_models.py FOLDER` writes FOLDER/NAME with the model and logits.pt: (token ids [T], logits [T, V]). In a process of its own,
without vLLM, which replaces methods of transformers' classes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TOKENS = 12
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "softmax, renormalized": ("MixtralConfig", {"num_local_experts": 4}, {}),
    "softmax, a gated shared expert": ("Qwen2MoeConfig", {**ROUTED, "num_experts": 6, "shared_expert_intermediate_size": 40}, {}),
    "softmax, a correction bias, a shared expert": ("Ernie4_5_MoeConfig", {
        "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1, "moe_layer_start_index": 0}, {}),
    "sigmoid, a correction bias, groups, scaling": ("Glm4MoeConfig", {
        **ROUTED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.5}, {}),
    "sigmoid, a correction bias": ("MiniMaxM2Config", {"num_local_experts": 8, "num_experts_per_tok": 2, "rotary_dim": 16}, {
        "scoring_func": "sigmoid", "rotary_dim": 16, "use_routing_bias": True}),
    "sigmoid, a bias among the experts' tensors": ("LagunaConfig", {
        **ROUTED, "num_experts": 4, "mlp_layer_types": ["sparse"], "layer_types": ["full_attention"], "shared_expert_intermediate_size": 40,
        "num_attention_heads_per_layer": [2]}, {}),
    "biases, swigluoai": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}),
    "the weight on the input": ("Llama4TextConfig", {
        "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40, "interleave_moe_layer_step": 1}, {}),
    "a scale per expert": ("Gemma4TextConfig", {
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24, "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8, "num_hidden_layers": 2, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"]}, {}),
    "sparse mixer": ("PhimoeConfig", {
        "num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}, {"architectures": ["PhiMoEForCausalLM"]}),
    "transformers' own": ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2}, {}),
    "transformers' block, fused": ("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}, {}),
}  # fmt: skip
"""Kind of router -> transformers' config, its sizes, and what vLLM wants in config.json besides."""


def write(name: str, folder: Path) -> None:
    import torch
    import transformers

    kind, sizes, written = MODELS[name]
    config = getattr(transformers, kind)(**{**SIZES, **sizes})
    config.dtype = "float32"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim >= 2 or (
                key != "lm_head.bias" and ("bias" in key or "per_expert" in key)
            ):  # vLLM's PhiMoE drops it
                tensor.normal_(0, 0.2)
        ids = torch.randint(3, SIZES["vocab_size"], (TOKENS,))
        logits = model(ids[None], use_cache=False).logits[0]
    model.save_pretrained(folder)
    torch.save((ids, logits), folder / "logits.pt")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | written))


if __name__ == "__main__":
    for each in MODELS:
        write(each, Path(sys.argv[1]) / each)
