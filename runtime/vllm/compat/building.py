"""What stands around a model of vLLM's while it is built and captured: its registry of layers, and what of its parts is not torch."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import vllm.ir.ops  # noqa: F401 - fills the registry of IR ops
from vllm.config import ModelConfig, VllmConfig
from vllm.ir.op import IrOp
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.rotary_embedding import (
    Gemma4RotaryEmbedding,
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    NTKScalingRotaryEmbedding,
    RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)
from vllm.model_executor.layers.rotary_embedding.deepseek_scaling_rope import DeepseekScalingRotaryEmbedding
from vllm.model_executor.model_loader import base_loader

STATIC_ROTARY = (
    RotaryEmbedding, Gemma4RotaryEmbedding, LinearScalingRotaryEmbedding, Llama3RotaryEmbedding, NTKScalingRotaryEmbedding,
    YaRNScalingRotaryEmbedding, DeepseekScalingRotaryEmbedding,
)  # fmt: skip
"""vLLM's rotary embeddings whose frequencies do not depend on the request's length."""


def forget_layers(vllm_config: VllmConfig) -> None:
    """Clears the config's registry of layers, in which a second model's names would collide, and vLLM's cache of rotary
    embeddings, which a second model would share with the first."""
    rotary_embedding._ROPE_DICT.clear()
    vllm_config.compilation_config.static_forward_context.clear()
    vllm_config.compilation_config.static_all_moe_layers.clear()


def without_layers(vllm_config: VllmConfig) -> VllmConfig:
    """The same config for another model, which registers its layers there."""
    other = copy.copy(vllm_config)
    other.compilation_config = copy.copy(vllm_config.compilation_config)
    other.compilation_config.static_forward_context = {}
    other.compilation_config.static_all_moe_layers = []
    return other


def layers_of(vllm_config: VllmConfig) -> dict[str, Any]:
    """The layers of the model that was built last and that keep state, by name."""
    return dict(vllm_config.compilation_config.static_forward_context)


def linear_layers() -> SimpleNamespace:
    """vLLM's classes of parallel linear layers, by their own names."""
    from vllm.model_executor.layers import linear

    names = ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear", "RowParallelLinear")
    return SimpleNamespace(**{name: getattr(linear, name) for name in names})


def routed_experts() -> type | None:
    """vLLM's class of a layer's experts; None where no model of this process has any."""
    module = sys.modules.get("vllm.model_executor.layers.fused_moe.routed_experts")
    return None if module is None else module.RoutedExperts


def expert_layers() -> SimpleNamespace:
    """vLLM's classes and modules of mixtures of experts, by their own names; imported at the first call, which a model with experts makes."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.router import fused_topk_bias_router
    from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulatorRouter
    from vllm.model_executor.layers.fused_moe.runner import moe_runner
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    return SimpleNamespace(
        RoutedExperts=RoutedExperts,
        RoutingSimulatorRouter=RoutingSimulatorRouter,
        UnquantizedFusedMoEMethod=UnquantizedFusedMoEMethod,
        fused_topk_bias_router=fused_topk_bias_router,
        moe_runner=moe_runner,
    )


def ir_implementations() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Maps each overload of vLLM's IR ops to the op's implementation in plain torch; `maybe_inplace` has the same."""
    table: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
    for name, op in IrOp.registry.items():
        packet = getattr(torch.ops.vllm_ir, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = op.impls["native"].impl_fn
    return table


@contextmanager
def no_compile() -> Iterator[None]:
    """Runs functions that vLLM's models decorate with torch.compile eagerly while it is entered, also within a trace."""
    import torch._dynamo.config

    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextmanager
def no_quantization() -> Iterator[None]:
    """Keeps vLLM's loader from importing the formats of quantized weights, only to find that there are none, while it is entered.

    Quantized models are refused before.
    """
    with patch.object(base_loader, "_get_online_quantization_config", lambda vllm_config: None), _no_online_methods():
        yield


ONLINE = {
    "vllm.model_executor.layers.quantization.online.fp8": "OnlineLinearBase",
    "vllm.model_executor.layers.quantization.online.moe_base": "OnlineMoEMethodBase",
}
"""Classes that vLLM's loader compares each layer's method with, and the modules from which it imports them to do so."""


@contextmanager
def _no_online_methods() -> Iterator[None]:
    """Stands in for the modules of `ONLINE` that nothing has imported, so that no layer's method can be of their classes."""
    stand_ins = {name: _NothingOf(name, of) for name, of in ONLINE.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for one in stand_ins.values():
            one.leave()


class _NothingOf(ModuleType):
    """A module with one class, of which nothing is. Whoever asks for something else gets the module of that name."""

    def __init__(self, name: str, of: str) -> None:
        super().__init__(name)
        self.__file__ = None  # `inspect.getmodule` asks every module for it
        setattr(self, of, type(of, (), {}))

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def no_comparison_of_heads(model_config: ModelConfig) -> Iterator[None]:
    """Keeps vLLM from comparing a head with the embedding while it is entered: meta tensors cannot be compared."""
    untied = model_config.word_embeddings_untied_by_checkpoint
    model_config.word_embeddings_untied_by_checkpoint = False
    try:
        yield
    finally:
        model_config.word_embeddings_untied_by_checkpoint = untied
