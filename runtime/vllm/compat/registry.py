"""vLLM's registry of models, whose classes are looked at in this process."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from vllm.platforms import current_platform

from ..config_fields import complete
from ..model_imports import without_images

PLAIN_VARIANTS = {"KimiLinearForCausalLM": "vllm.models.kimi_k3.amd.linear"}
"""Architectures of packages with a variant for each vendor -> the module that is made of vLLM's common layers."""


REGISTRY = {
    "Text generation": "_TEXT_GENERATION_MODELS",
    "Text generation and images through the Transformers backend": "_TRANSFORMERS_SUPPORTED_MODELS",
    "The Transformers backend itself": "_TRANSFORMERS_BACKEND_MODELS",
    "Embedding": "_EMBEDDING_MODELS",
    "Late interaction": "_LATE_INTERACTION_MODELS",
    "Reward": "_REWARD_MODELS",
    "Classification of sequences": "_SEQUENCE_CLASSIFICATION_MODELS",
    "Classification of tokens": "_TOKEN_CLASSIFICATION_MODELS",
    "Images, speech and encoder-decoders": "_MULTIMODAL_MODELS",
    "Drafts of speculative decoding": "_SPECULATIVE_DECODING_MODELS",
}
"""What architectures are for -> the table of vLLM's registry that has them."""


def look_at_models_here() -> None:
    """Makes vLLM inspect a model's class in this process, and import it although it imports what a text model has no use for.

    vLLM inspects in a process of its own, in case the import touches a GPU, and caches the result on disk: the first start of each
    architecture would import all of vLLM twice, although the engine, a fork of this process, needs the class anyway.
    """
    _complete_configs()
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda fn: fn()
    registry._LazyRegisteredModel.load_model_cls = _load_model_class
    for architecture, module in PLAIN_VARIANTS.items():
        if getattr(registry.ModelRegistry.models[architecture], "module_name", "") == _package(module):  # nobody's own
            registry.ModelRegistry.register_model(architecture, f"{module}:{architecture}")


def _complete_configs() -> None:
    """Makes each config that vLLM reads from now on mean what transformers' class makes of it (config_fields.py)."""
    module: Any = importlib.import_module("vllm.config.model")
    read = module.get_config
    if hasattr(read, "__wrapped__"):
        return  # done

    @functools.wraps(read)
    def completed(*args: object, **kwargs: object) -> Any:
        config = read(*args, **kwargs)
        complete(config)
        return config

    module.get_config = completed


def registered() -> dict[str, tuple[str, ...]]:
    """vLLM's own architectures, by what they are for."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    return {title: tuple(getattr(registry, table)) for title, table in REGISTRY.items()}


def registered_name(architecture: str) -> str:
    """The name under which vLLM has a class that it can make one of this name of: of a decoder, a model that pools. Else the name itself."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    return registry.ModelRegistry._normalize_arch(architecture, SimpleNamespace())


def names_of_class(architecture: str) -> tuple[str, ...]:
    """Names by which tables have vLLM's class of an architecture: the architecture's own, that of the decoder which is made to pool
    (Qwen3ForCausalLM of Qwen3ForSequenceClassification), the class's (Qwen2ForCausalLM of Qwen2Model). None where the class is not vLLM's own."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    known = registered_name(architecture)
    found = registry.ModelRegistry.models.get(known)
    module, name = getattr(found, "module_name", ""), getattr(found, "class_name", "")
    return tuple(dict.fromkeys((architecture, known, name))) if module.startswith("vllm.") else ()


def _load_model_class(model: Any) -> Any:
    """In place of _LazyRegisteredModel.load_model_cls, which has the module's and the class's name."""
    with without_images(), _no_gpu_variant(model):
        return getattr(importlib.import_module(model.module_name), model.class_name)


@contextmanager
def _no_gpu_variant(model: Any) -> Iterator[None]:
    """A package of `PLAIN_VARIANTS` imports a GPU's kernels unless it is on a TPU, where it imports nothing."""
    if model.module_name in PLAIN_VARIANTS.values():
        with patch.object(type(current_platform), "device_type", "tpu"):
            importlib.import_module(_package(model.module_name))
    yield


def _package(module: str) -> str:
    """The package vllm.models.<name> of a module."""
    return ".".join(module.split(".")[:3])


def is_multimodal(architecture: str) -> bool:
    registry: Any = importlib.import_module("vllm.model_executor.models.registry")
    found = registry.ModelRegistry._try_inspect_model_cls(architecture)
    return found is not None and (found.supports_multimodal or architecture in registry._MULTIMODAL_MODELS)
