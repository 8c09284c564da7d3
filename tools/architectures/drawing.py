"""Parts of random configs that families share: what a draw may choose from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Sizes = dict[str, Any]
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Draw:
    """Choices that follow from a seed alone."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def one(self, *values: Any) -> Any:
        return self._random.choice(values)

    def maybe(self, **fields: Any) -> Sizes:
        """The fields, half of the time."""
        return fields if self.one(True, False) else {}

    def rarely(self, **fields: Any) -> Sizes:
        """One of the fields in one draw of twelve: what most of the published models of a family do not have."""
        return dict([self.one(*fields.items())]) if self.one(*range(12)) == 0 else {}

    def kinds(self, count: int, *kinds: str) -> list[str]:
        """A kind for each layer, every one of them at least once."""
        chosen = [*kinds, *(self.one(*kinds) for _ in range(count - len(kinds)))]
        self._random.shuffle(chosen)
        return chosen


def body(d: Draw, *, head_dim: bool = True, layers: int | None = None) -> Sizes:
    """Vocabulary, layers, heads and intermediate size; sizes that are multiples of little. head_dim: whether one of its own is a field."""
    heads = d.one(2, 4, 6)
    size = d.one(8, 16, 24)
    return {
        "vocab_size": d.one(320, 321, 333, 350, 384),
        "hidden_size": heads * size,
        "intermediate_size": d.one(24, 40, 72, 99, 136),
        "num_hidden_layers": layers or d.one(1, 2, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": d.one(1, heads // 2, heads),
        "max_position_embeddings": 256,
        "tie_word_embeddings": d.one(True, False),
        "rms_norm_eps": d.one(1e-6, 1e-5, 1e-2),
        **({"head_dim": d.one(size, 8, 16, 32)} if head_dim else {}),
        **IDS,
    }


def rope(d: Draw, *, partial: bool = False) -> Sizes:
    """`rope_parameters` of a kind that both libraries define alike. partial: whether a part of a head may be rotated."""
    kind = d.one("default", "default", "linear", "llama3", "yarn")
    scaled: dict[str, Sizes] = {
        "default": {},
        "linear": {"factor": d.one(2.0, 8.0)},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": d.one(1.0, 2.0),
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": d.one(32, 64),
        },
        "yarn": {
            "factor": d.one(2.0, 4.0),
            "original_max_position_embeddings": 64,
            **d.maybe(beta_fast=16.0, beta_slow=2.0),
            **d.maybe(attention_factor=1.3),
        },
    }
    part = {"partial_rotary_factor": d.one(0.5, 1.0)} if partial else {}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": d.one(100.0, 10000.0, 1e6), **scaled[kind], **part}}


def yarn(d: Draw) -> Sizes:
    """`rope_parameters` of latent attention."""
    given = {"rope_type": "yarn", "factor": d.one(2.0, 4.0), "original_max_position_embeddings": 64}
    scales = d.one({}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.7, "mscale_all_dim": 1.2})
    more = d.one(
        {"rope_type": "default"},
        given | scales | d.maybe(beta_fast=16.0, beta_slow=2.0) | d.rarely(attention_factor=1.3, truncate=False),
    )
    return {"rope_parameters": {"rope_theta": d.one(100.0, 10000.0)} | more}


def windows(d: Draw, count: int) -> Sizes:
    """Layers with a window and without one."""
    return {
        "sliding_window": d.one(5, 16, 31),
        "layer_types": d.kinds(count, "sliding_attention", "full_attention"),
    }


def experts(d: Draw, *names: str) -> Sizes:
    """names: of the number of experts, of how many are chosen, of an expert's size, as far as the family has them."""
    count = d.one(3, 4, 6, 8)
    return dict(zip(names, (count, d.one(1, 2, count), d.one(16, 40, 33)), strict=False))


def groups(d: Draw) -> Sizes:
    """Experts in groups, of which the best are chosen from."""
    count, each = d.one((1, 4), (2, 4), (4, 2), (2, 3))
    chosen = d.one(*range(1, count + 1))
    return {
        "n_routed_experts": count * each,
        "n_group": count,
        "topk_group": chosen,
        "num_experts_per_tok": d.one(1, 2, chosen * each),
        "moe_intermediate_size": d.one(16, 40),
        "n_shared_experts": d.one(1, 2),
        "norm_topk_prob": d.one(True, False),
        "routed_scaling_factor": d.one(1.0, 2.5),
    }


def latent(d: Draw) -> Sizes:
    """Sizes of latent attention, each with another one."""
    return {
        "kv_lora_rank": d.one(16, 24, 40),
        "q_lora_rank": d.one(None, 24),
        "qk_rope_head_dim": d.one(4, 8, 16),
        "qk_nope_head_dim": d.one(8, 16, 24),
        "v_head_dim": d.one(8, 16, 24),
    }


def ssd(d: Draw, names: Sequence[str]) -> Sizes:
    """Sizes of Mamba 2's layers by these names: heads, a head's size, groups, state, convolution, chunk."""
    groups = d.one(1, 2, 4)
    values = (groups * d.one(1, 2), d.one(8, 16), groups, d.one(8, 16, 24), d.one(2, 3, 4), d.one(8, 16))
    return dict(zip(names, values, strict=True))


def multipliers(d: Draw) -> Sizes:
    return {
        "embedding_multiplier": d.one(1.0, 3.0),
        "residual_multiplier": d.one(1.0, 0.3),
        "logits_scaling": d.one(1.0, 2.5),
        "attention_multiplier": d.one(0.1, 0.3, 1.0),
    }
