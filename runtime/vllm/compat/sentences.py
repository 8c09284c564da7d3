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
    """Whether a dense layer's `activation_function` is one of vLLM's. As `get_act_fn` finds it, which also makes it: some want an engine's config."""
    known: Any = importlib.import_module("vllm.model_executor.layers.activation")._ACTIVATION_REGISTRY
    name = name.lower()
    last = name.rpartition(".")[2] if name.startswith("torch.nn.modules.") else name
    return last in set(known) or (last == "identity" and last != name)  # `in` alone would make it


def pools_as_asked(model_config: ModelConfig) -> bool:
    """Whether the user chose how a text is pooled, whatever the folder says."""
    sources: dict[str, str] = getattr(model_config, "_pooler_config_sources", {})
    return sources.get("seq_pooling_type") == "user"
