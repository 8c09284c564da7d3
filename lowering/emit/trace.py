"""Traces a kernel's reference, a torch function over static shapes, to ATen ops that have rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import fx

from ...passes.functional import functional_graph
from ...passes.torch_private import FakeTensorMode
from ..decompositions.table import decompositions
from ..types import TensorType


def trace_reference(
    reference: Callable[..., object], operands: Mapping[str, TensorType], attributes: Mapping[str, object]
) -> fx.GraphModule:
    """Returns the graph of `reference(**operands, **attributes)`, a placeholder per operand in order.

    Must not be edited: calls with the same operands and attributes, as in several buckets of one model, share the graph.
    """
    return _traced(reference, tuple(operands.items()), tuple(attributes.items()))


@lru_cache(maxsize=256)
def _traced(
    reference: Callable[..., object],
    operands: tuple[tuple[str, TensorType], ...],
    attributes: tuple[tuple[str, object], ...],
) -> fx.GraphModule:
    def flat(*tensors: torch.Tensor) -> object:
        return reference(**dict(zip((name for name, _ in operands), tensors, strict=True)), **dict(attributes))

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        examples = [torch.empty(type_.shape, dtype=type_.dtype) for _, type_ in operands]
        return functional_graph(flat, examples, table=decompositions(), tracing_mode="real")
