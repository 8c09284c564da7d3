"""What an architecture's small random model is made of. `Architecture` is one row of the tables beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 1e-3
"""Largest difference of a log-probability in float32."""

SIZES: Mapping[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS: Mapping[str, Any] = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
WINDOW: Mapping[str, Any] = {"sliding_window": 16, "head_dim": 16}
ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
MULTIPLIERS: Mapping[str, Any] = {
    "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.25,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """name: a key of vLLM's registry; of a model that only vLLM's Transformers backend knows, transformers' class.
    config: transformers' class of its config; sizes: the arguments of that.
    written: entries of config.json that vLLM reads and transformers does not write; None takes one away.
    tolerance, note: of the log-probabilities, and why it is not TOLERANCE: where the two libraries define the model differently.
    attention, experts: transformers' implementations, where its usual ones leave something out. zero: parts of the names of weights that are 0.
    spread: how far norms, biases and decays are from what they are initialized to, in multiples of the usual.
    renamed: parts of the names of weights in the files, where vLLM does not read transformers' names; None leaves the weight out.
    """

    name: str
    config: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE
    note: str = ""
    attention: str | None = None
    experts: str | None = None
    zero: tuple[str, ...] = ()
    spread: float = 1.0
    renamed: Mapping[str, str | None] = field(default_factory=dict)
