"""What vLLM's poolers make of a sentence-transformers folder: which modules, activations and poolings they know."""

from __future__ import annotations

import importlib
from typing import Any

from vllm.config import ModelConfig

MODULES = {
    "Pooling": "_ST_POOLING_MODULE_TYPES",
    "Dense": "_DENSE_MODULE_TYPES",
    "Normalize": "_ST_NORMALIZE_MODULE_TYPES",
}
"""A kind of module -> the set in vllm.transformers_utils.config with the names of its types."""


def kind_of_module(kind: str) -> str:
    """Pooling, Dense or Normalize, of a `type` in modules.json; "" for one that vLLM leaves out."""
    module = importlib.import_module("vllm.transformers_utils.config")
    return next((name for name, types in MODULES.items() if kind in getattr(module, types)), "")


def has_activation(name: str) -> bool:
    """Whether a dense layer's `activation_function` is one of vLLM's."""
    get_act_fn: Any = importlib.import_module("vllm.model_executor.layers.activation").get_act_fn
    try:
        get_act_fn(name)
    except ValueError:
        return False
    return True


def pools_as_asked(model_config: ModelConfig) -> bool:
    """Whether the user chose how a text is pooled, whatever the folder says."""
    sources: dict[str, str] = getattr(model_config, "_pooler_config_sources", {})
    return sources.get("seq_pooling_type") == "user"
