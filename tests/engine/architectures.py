"""Small models with random weights of the architectures that vLLM serves, as folders, and what transformers answers.

`python architectures.py NAME FOLDER` writes the model and, beside it, reference.json: the greedy tokens of each prompt and their log
probabilities. In a process of its own, without vLLM, which replaces methods of transformers' classes when it serves them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPTS = (1, 5, 17, 40, 70)
"""Lengths; sliding windows are 16, and a step takes 32 tokens."""
NEW_TOKENS = 16

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2}
HALVES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **OLD}
HEADS = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
WINDOW = {"sliding_window": 16, "head_dim": 16}
MULTIPLIERS = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 16}),
    "mistral": ("MistralConfig", {**SIZES, **WINDOW}),
    "gemma": ("GemmaConfig", {**SIZES, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**SIZES, **WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 4}),
    "gemma3": ("Gemma3TextConfig", {**SIZES, **WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}),
    "phi3": ("Phi3Config", SIZES),
    "gpt2": ("GPT2Config", HALVES),
    "gptj": ("GPTJConfig", {**HALVES, "rotary_dim": 8}),
    "opt": ("OPTConfig", {**OLD, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 256, "word_embed_proj_dim": 64, "pad_token_id": 0}),
    "bloom": ("BloomConfig", {**OLD, "hidden_size": 64, "n_layer": 2, "n_head": 4, "seq_length": 256}),
    "falcon": ("FalconConfig", {**OLD, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": False,
            "multi_query": True,
            "max_position_embeddings": 256}),
    "granite": ("GraniteConfig", {**SIZES, **MULTIPLIERS}),
    "cohere": ("CohereConfig", SIZES),
    "cohere2": ("Cohere2Config", {**SIZES, **WINDOW, "num_hidden_layers": 4, "sliding_window": 256}),  # vLLM's sees one key more
    "stablelm": ("StableLmConfig", SIZES),
    "nemotron": ("NemotronConfig", {**SIZES, "head_dim": 16}),
    "exaone4": ("Exaone4Config", {**SIZES, "sliding_window": 16, "sliding_window_pattern": 2}),
    "olmo2": ("Olmo2Config", SIZES),
    "smollm3": ("SmolLM3Config", SIZES),
    "olmo": ("OlmoConfig", SIZES),
    "olmo3": ("Olmo3Config", {**SIZES, "sliding_window": 16, "num_hidden_layers": 4}),
    "apertus": ("ApertusConfig", SIZES),
    "arcee": ("ArceeConfig", SIZES),
    "biogpt": ("BioGptConfig", {**OLD, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
            "max_position_embeddings": 256}),
    "bitnet": ("BitNetConfig", SIZES),
    "cwm": ("CwmConfig", {**SIZES, **WINDOW, "rope_parameters": ROPE}),
    "ernie4_5": ("Ernie4_5Config", SIZES),
    "gemma4": ("Gemma4TextConfig", {**SIZES, **WINDOW, "num_hidden_layers": 6}),
    "glm": ("GlmConfig", {**SIZES, "head_dim": 16}),
    "glm4": ("Glm4Config", {**SIZES, "head_dim": 16}),
    "gpt_bigcode": ("GPTBigCodeConfig", HALVES),
    "gpt_neox": ("GPTNeoXConfig", HEADS),
    "granite_swa": ("GraniteSWAConfig", {**SIZES, **MULTIPLIERS, "sliding_window": 16}),
    "helium": ("HeliumConfig", {**SIZES, "head_dim": 16}),
    "hunyuan_v1_dense": ("HunYuanDenseV1Config", {**SIZES, "head_dim": 16}),
    "hyperclovax": ("HyperCLOVAXConfig", SIZES),
    "jais2": ("Jais2Config", SIZES),
    "ministral": ("MinistralConfig", {**SIZES, **WINDOW, "num_hidden_layers": 4}),
    "ministral3": ("Ministral3Config", {**SIZES, "head_dim": 16}),
    "nanochat": ("NanoChatConfig", SIZES),
    "persimmon": ("PersimmonConfig", HEADS),
    "phi": ("PhiConfig", SIZES),
    "seed_oss": ("SeedOssConfig", {**SIZES, "head_dim": 16}),
    "starcoder2": ("Starcoder2Config", {**SIZES, "sliding_window": 16}),
    "vaultgemma": ("VaultGemmaConfig", {**SIZES, **WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 4}),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "mamba": ("MambaConfig", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip


def prompts() -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in PROMPTS]


def write(name: str, folder: Path) -> None:
    """The model's folder with reference.json."""
    import torch
    import transformers

    kind, sizes = CONFIGS[name]
    config = getattr(transformers, kind)(**sizes)
    config.torch_dtype = "float32"
    attention = "eager" if name in ("gemma2", "vaultgemma") else None  # the others leave the soft cap out
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.12)
            elif "norm" not in parameter_name and "ln" not in parameter_name:
                parameter.normal_(0, 0.05)
        model.save_pretrained(folder)
        answers = [answer(model, prompt) for prompt in prompts()]
    (folder / "reference.json").write_text(json.dumps(answers))


def answer(model: Callable[..., Any], prompt: list[int]) -> dict[str, Any]:
    """Greedy, the whole text anew for each token: no cache of transformers is trusted."""
    import torch

    tokens, logprobs = list(prompt), []
    for _ in range(NEW_TOKENS):
        scores = torch.log_softmax(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float(), -1)
        best = int(scores.argmax())
        logprobs.append(float(scores[best]))
        tokens.append(best)
    return {"tokens": tokens[len(prompt) :], "logprobs": logprobs}


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
