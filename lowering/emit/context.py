"""What a rule sees besides its operands: the result types that the graph states, and the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..types import TensorType

if TYPE_CHECKING:
    from .emit import Emitter


@dataclass
class Context:
    """The context of one op.

    results: the type of each result as the fake tensors on the node say; None for a result that is no tensor.
    target_op: the overload's name, for errors.
    subgraphs: for control flow, the branch graphs by the name of their attribute.
    """

    results: tuple[TensorType | None, ...]
    target_op: str = ""
    emitter: Emitter | None = None
    subgraphs: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> TensorType:
        """The only (or first) result's type."""
        first = self.results[0]
        assert first is not None, self.target_op
        return first

    @property
    def shape(self) -> tuple[int, ...]:
        return self.result.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.result.dtype
