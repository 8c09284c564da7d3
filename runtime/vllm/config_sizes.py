"""Checks the sizes in a model's config against each other, by kinds of layers, before anything of the model is made.

vLLM's layers divide by them, or compute with a part of what does not divide, and say so late, as an empty assertion or a shape in the middle
of a capture. Comes in: a config as vLLM read it. Guaranteed: each number of the tables below is in its range, and what is split into
parts can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .folder import HEADS, SIZES, ModelError

POSITIVE = (
    *SIZES,
    "head_dim", "v_head_dim", "intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size",
    "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "n_group", "topk_group", "index_topk", "index_head_dim", "index_n_heads",
    "state_size", "ssm_state_size", "conv_kernel", "n_groups", "time_step_rank", "mamba_num_heads", "mamba_head_dim",
    "mamba_d_state", "mamba_d_conv", "mamba_d_head", "mamba_n_heads", "mamba_n_groups", "mamba_ngroups", "mamba_headdim", "n_mamba_heads",
    "mamba_dt_rank", "mamba_expand", "expand", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim", "chunk_size", "mamba_chunk_size",
    "linear_num_heads", "linear_head_dim", "conv_L_cache", "conv_dim", "block_dim",
)  # fmt: skip
"""Numbers of at least 1, where a config has them; HEADS too, of a model with attention."""
NOT_NEGATIVE = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok", "n_shared_experts",
    "num_shared_experts", "first_k_dense_replace", "shared_expert_intermediate_size", "shared_intermediate_size",
    "zero_expert_num", "num_kv_shared_layers",
)  # fmt: skip
"""Numbers of which 0 means none."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
DIVIDED = (
    ("num_key_value_heads", "num_attention_heads"),
    ("n_groups", "num_heads"),
    ("n_groups", "mamba_num_heads"),
    ("mamba_n_groups", "mamba_n_heads"),
    ("mamba_ngroups", "n_mamba_heads"),
    ("linear_num_key_heads", "linear_num_value_heads"),
    *(("n_group", experts) for experts in EXPERTS),
)
"""(how many groups, of how many): each group has the same number."""
HEAD_SIZES = ("head_dim", "attention_head_dim", "kv_channels", "d_kv", "qk_nope_head_dim", "v_head_dim")
"""Where a config has none of these, a head's size is the hidden size divided by the heads."""
WITHIN = (
    ("topk_group", "n_group"),
    *((chosen, experts) for chosen in CHOSEN for experts in EXPERTS),
)
"""(how many are chosen, of how many)."""
EVEN = ("qk_rope_head_dim",)
"""Numbers of dimensions that are rotated, in pairs."""


def value_of(config: Any, name: str) -> Any:
    """A field of all layers; None where a config has none, or another value for some layers (Gemma 4), which transformers does not tell."""
    try:
        return getattr(config, name, None)
    except RuntimeError as problem:
        if type(problem).__name__ != "AmbiguousGlobalPerLayerAttributeError":
            raise
        return None


def check_config_sizes(config: Any, where: Path, *, attention: bool, latent: bool) -> None:
    """Raises ModelError with every size that is out of its range or does not fit another.

    config: of the text model. attention: whether the model has any; latent: whether it is of latents, whose heads are all alike.
    """
    wrong = dict.fromkeys(_wrong(config, attention, latent))  # two names may be one field
    if wrong:
        raise ModelError(
            f"a model cannot have this config: {'; '.join(wrong)}",
            where=where,
            next_step="correct these sizes in config.json; is this the config.json of a model?",
        )


def _wrong(config: Any, attention: bool, latent: bool) -> Iterator[str]:
    names = getattr(config, "attribute_map", {})

    def number(name: str) -> int | None:
        value = value_of(config, name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def told(name: str) -> str:
        return f"{names.get(name, name)} is {number(name)}"

    for least, group in ((1, (*POSITIVE, *(HEADS if attention else ()))), (0, NOT_NEGATIVE)):
        for name in group:
            size = number(name)
            if size is not None and size < least:
                yield f"{told(name)}, and must be at least {least}"
    divided = [*DIVIDED, *([] if any(map(number, HEAD_SIZES)) else [("num_attention_heads", "hidden_size")])]
    for part, whole in divided:
        parts, size = number(part), number(whole)
        if not parts or not size or parts < 0 or (part in HEADS and (latent or not attention)):
            continue
        if size % parts:
            yield f"{told(whole)}, which {told(part)} does not divide"
    for part, whole in WITHIN:
        chosen, size = number(part), number(whole)
        if chosen is not None and size and chosen > size:
            yield f"{told(part)}, more than {told(whole)}"
    for name in EVEN:
        size = number(name)
        if size and size % 2:
            yield f"{told(name)}, and must be even"
