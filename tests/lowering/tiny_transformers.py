"""Architectures of transformers at a tiny size, by model type: what the library's own config says, with small numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_BY_NUMBER: dict[int, str] = {
    1: "n_group topk_group n_shared_experts first_k_dense_replace bos_token_id decoder_start_token_id",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers num_key_value_heads num_experts_per_tok eos_token_id",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts num_local_experts n_routed_experts"
    " rotary_dim window_size sliding_window num_conv_pos_embedding_groups",
    8: "head_dim d_head d_kv state_size qk_rope_head_dim qk_nope_head_dim v_head_dim patch_size",
    16: "q_lora_rank kv_lora_rank num_mel_bins num_conv_pos_embeddings",
    32: "hidden_size d_model n_embd embedding_size projection_dim dim hidden_dim attention_hidden_size moe_intermediate_size image_size",
    48: "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff ffn_dim",
    64: "vocab_size max_position_embeddings n_positions max_target_positions max_source_positions",
}
SMALL = {"pad_token_id": 0} | {key: number for number, keys in _BY_NUMBER.items() for key in keys.split()}
DERIVED = (
    "model_type",
    "transformers_version",
    "out_features",
    "out_indices",
    "stage_names",
    "dtype",
    "attention_layers",
)

SPEECH = {"conv_dim": [16] * 3, "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3}
STAGES = {
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "image_size": 64,
}
WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "patch_size": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": {"num_key_value_heads": 4}, "glm4_moe_lite": {"num_key_value_heads": 4}, "youtu": {"num_key_value_heads": 4},
    "audio-spectrogram-transformer": {"max_length": 32, "patch_size": 4, "frequency_stride": 4, "time_stride": 4},
    "big_bird": {"attention_type": "original_full"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "patch_size": 4},
    "dac": {"encoder_hidden_size": 8, "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4, "downsampling_ratios": [2, 4], "upsampling_ratios": [4, 2]},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2}, "deepseek_v3": {"num_key_value_heads": 4},
    "focalnet": {**WINDOWS, "hidden_sizes": [16, 32], "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "hubert": SPEECH, "sew": SPEECH, "wavlm": SPEECH, "wav2vec2": SPEECH, "data2vec-audio": SPEECH,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "levit": {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8], "depths": [1, 1, 1], "image_size": 64, "patch_size": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4},
    "mobilevit": {"hidden_sizes": [16] * 3, "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "image_size": 64, "patch_size": 2},
    "mpt": {"max_seq_len": 64},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "patchtst": {"context_length": 32, "num_input_channels": 2, "patch_length": 4, "patch_stride": 4},
    "poolformer": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    "pvt": STAGES, "pvt_v2": STAGES, "segformer": STAGES,
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "speech_to_text": {"input_feat_per_channel": 16, "input_channels": 1, "conv_channels": 16},
    "swin": WINDOWS, "swinv2": WINDOWS,
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2, "attention_head_dim": 16, "attention_hidden_size": 64, "mamba_dt_rank": 4,
              "n_mamba_heads": 2, "use_mamba_kernels": False},
    "yolos": {"num_detection_tokens": 4, "image_size": [32, 32]},
}  # fmt: skip

IDS = torch.tensor([[1, 5, 9, 2, 30, 7], [3, 3, 8, 5, 11, 4]])
INPUTS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "audio-spectrogram-transformer": lambda: {"input_values": torch.randn(2, 32, 16)},
    "canine": lambda: {"input_ids": IDS.repeat(1, 4)},
    "dac": lambda: {"input_values": torch.randn(2, 1, 320)},
    "patchtst": lambda: {"past_values": torch.randn(2, 32, 2)},
    "speech_to_text": lambda: {"input_features": torch.randn(2, 32, 16), "decoder_input_ids": IDS},
}

FAST = ("falcon", "data2vec-vision", "swinv2", "mamba")
"""One head of keys for all; a view of transposed attention; windows that roll; a scan written as a loop."""
LONG = (
    "albert", "arcee", "aria_text", "audio-spectrogram-transformer", "axk1", "bart", "beit", "bert-generation", "big_bird", "biogpt", "blenderbot",
    "blenderbot-small", "bloom", "canine", "clip_text_model", "clip_vision_model", "codegen", "cohere", "cohere2", "convbert", "convnext", "convnextv2",
    "ctrl", "cwm", "dac", "data2vec-audio", "deberta", "deberta-v2", "deepseek_v2", "deepseek_v3", "deit", "diffllama", "dinov2", "distilbert", "dpr",
    "electra", "ernie4_5", "eurobert", "exaone4", "falcon_mamba", "flaubert", "flex_olmo", "fnet", "focalnet", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "glm4_moe", "glm4_moe_lite", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe",
    "granitemoe_swa", "granitemoeshared", "gte", "helium", "hubert", "hy_v3", "hyperclovax", "ibert", "jais2", "jamba", "jina_embeddings_v3", "layoutlm",
    "levit", "llama", "longt5", "luke", "m2m_100", "mamba2", "marian", "mbart", "megatron-bert", "minimax", "minimax_m2", "ministral3", "mlcd_vision_model",
    "mobilebert", "mobilevit", "modernbert", "modernbert-decoder", "mpnet", "mpt", "mra", "mt5", "nanochat", "nemotron", "nystromformer", "olmo", "olmo2",
    "olmo3", "olmoe", "openai-gpt", "opt", "patchtst", "pegasus", "persimmon", "phi", "phi3", "phimoe", "pixio", "poolformer", "prophetnet", "pvt", "pvt_v2",
    "qwen2", "qwen2_moe", "qwen3_moe", "qwen3_vl_text", "regnet", "rembert", "resnet", "roberta", "roformer", "rwkv", "segformer", "sew",
    "siglip_vision_model", "smollm3", "solar_open", "speech_to_text", "splinter", "squeezebert", "stablelm", "starcoder2", "swin", "vaultgemma",
    "voxtral_encoder", "wav2vec2", "wavlm", "whisper", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "yolos", "yoso", "youtu", "zamba",
)  # fmt: skip


def build(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model of a type in eval mode, and what it is called with, by position; it gives a list of tensors."""
    from transformers import AutoConfig, AutoModel

    default = type(AutoConfig.for_model(name))
    config = default(**_small(default().to_dict()) | OVERRIDES.get(name, {}))
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model = AutoModel.from_config(config).eval()
    inputs = INPUTS[name]() if name in INPUTS else _inputs(model)
    return Flat(model, tuple(inputs)), tuple(inputs.values())


def _small(config: dict[str, Any]) -> dict[str, Any]:
    small = {}
    for key, value in config.items():
        if key in DERIVED:
            continue
        if key == "layer_types" and value:
            value = (list(dict.fromkeys(value)) * 2)[:2]
        small[key] = SMALL[key] if key in SMALL and isinstance(value, int) and not isinstance(value, bool) else value
    return small


def _inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    names = inspect.signature(model.forward).parameters
    main, config = model.main_input_name, model.config
    if main == "pixel_values":
        size = getattr(config, "image_size", 32)
        size = size[0] if isinstance(size, list | tuple) else size
        return {main: torch.randn(2, 3, size, size)}
    if main != "input_ids":
        inputs = {main: torch.randn(2, 1200) if main == "input_values" else torch.randn(2, config.num_mel_bins, 128)}
    else:
        inputs = {main: IDS}
    if main == "input_ids" and "attention_mask" in names:
        mask = torch.ones_like(IDS)
        mask[1, 4:] = 0
        inputs["attention_mask"] = mask
    if "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = IDS[:, :5]
    return inputs


class Flat(nn.Module):
    """A model that takes its inputs by position and gives all tensors of its result."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: torch.Tensor) -> list[torch.Tensor]:
        result = self.model(**dict(zip(self.names, values, strict=True)))
        return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
