"""Context: a rule's argument besides its operands, with the result types that the graph states and the module under construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..types import TensorType, Value
from .functions import Functions


@dataclass(slots=True)  # not frozen: one is made for every op, and a frozen one takes three times as long to make
class Context:
    """The context of one op.

    results: the type of each result, from the node's fake tensors; None for a result that is not a tensor.
    target_op: the overload's name, for errors.
    functions: the module's private functions.
    inline: emits a graph, such as a region of control flow, at the insertion point; it takes the graph's operands (Values and
        numbers) and returns its results.
    """

    results: tuple[TensorType | None, ...]
    target_op: str
    functions: Functions
    inline: Callable[[fx.GraphModule, Sequence[object]], list[Value]]

    @property
    def result(self) -> TensorType:
        """The only (or first) result's type."""
        first = self.results[0]
        assert first is not None, self.target_op
        return first

    @property
    def shape(self) -> tuple[int, ...]:
        """The first result's shape."""
        return self.result.shape

    @property
    def dtype(self) -> torch.dtype:
        """The first result's dtype."""
        return self.result.dtype
