"""Traces a kernel's reference, a plain torch function over static shapes, to ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from .types import TensorType


def trace_reference(
    reference: Callable[..., Any], operands: Mapping[str, TensorType], attributes: Mapping[str, Any]
) -> fx.GraphModule:
    """The graph of `reference(**operands, **attributes)` with one placeholder per operand, in their order."""
    from .decompositions import decompositions

    def flat(*tensors: torch.Tensor) -> Any:
        return reference(**dict(zip(operands, tensors, strict=True)), **attributes)

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        examples = [torch.empty(type_.shape, dtype=type_.dtype) for type_ in operands.values()]
        functional = torch.func.functionalize(flat, remove="mutations")
        return make_fx(functional, decomposition_table=decompositions(), tracing_mode="real")(*examples)
