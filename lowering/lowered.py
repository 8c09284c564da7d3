"""LoweredModule: verified StableHLO, its signature and its weights. Data alone; HloModule (module.py) adds the public methods."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..passes import mlir
from ..passes.arrays import memory_of
from ..passes.torch_private import FakeTensor
from ..runtime.core.signature import Signature
from .types import numpy_dtype


@dataclass(frozen=True)
class LoweredModule:
    """A portable StableHLO module: `fxhlo::` ops are composites with their reference as decomposition.

    signature: the arguments of `main`, in order: weights, buffers and constants, then inputs and states.
    bindings: the sizes to which symbolic dimensions were bound.
    tensors: the torch tensors (of a JAX function: arrays) behind weights, buffers and constants; fake ones where captured
        without weights.
    target: what it will be compiled for. Compiling legalizes a copy: the module stays portable.
    complete: emits decompositions that are only declared in `module`, those of the symbols or all; None where all are there.
    """

    module: mlir.ir.Module
    signature: Signature
    bindings: Mapping[str, int] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor | np.ndarray] = field(default_factory=dict)
    name: str = "main"
    target: str = "cpu"
    complete: Callable[[Collection[str] | None], None] | None = None

    @property
    def whole(self) -> mlir.ir.Module:
        """`module` with every decomposition."""
        if self.complete is not None:
            self.complete(None)
        return self.module

    @cached_property
    def text(self) -> str:
        """StableHLO as text, with source locations."""
        return mlir.text(self.whole, locations=True)

    @cached_property
    def bytecode(self) -> bytes:
        """The portable, versioned StableHLO artifact."""
        return mlir.portable(self.whole)

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights, buffers and constants as numpy arrays that share the tensors' memory; {} if one of them is fake."""
        wanted = {
            argument.name for argument in self.signature.arguments if argument.kind in ("weight", "buffer", "constant")
        }
        real = {name: tensor for name, tensor in self.tensors.items() if name in wanted and is_real(tensor)}
        return {name: as_numpy(tensor) for name, tensor in real.items()} if len(real) == len(wanted) else {}


def is_real(tensor: torch.Tensor | np.ndarray) -> bool:
    """Whether the tensor has values: neither fake nor on the meta device."""
    return isinstance(tensor, np.ndarray) or (not isinstance(tensor, FakeTensor) and tensor.device.type != "meta")


def as_numpy(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    """The tensor's memory as numpy (ml_dtypes for bfloat16 and fp8); copied only where it is not contiguous."""
    if isinstance(tensor, np.ndarray):
        return tensor
    return memory_of(tensor, numpy_dtype(tensor.dtype))
