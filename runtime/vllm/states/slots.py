"""A state with one row ("slot") per request: what a recurrent layer keeps of all tokens so far, whatever their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .spec import StateSpec


@dataclass(frozen=True, kw_only=True)
class SlotState(StateSpec):
    """[num_slots, ...]. Row 0 belongs to no request. The ops take a state as zero where a step has a request's first token."""

    @classmethod
    def of(cls, layer: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> SlotState:
        """name: what the state is called, without the layer's name. shape: of one slot."""
        return cls(
            layer=layer,
            name=f"{name}.{layer}",
            shape=("num_slots", *shape),
            dtype=str(dtype).removeprefix("torch."),
            rows="slots",
            reset="begin",
        )

    def for_vllm(self) -> None:
        """None: the batch assigns the rows."""
