"""StateSpec: describes a state that outlives a step, for programs, placement, batch and vLLM's cache manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ....passes.hlo.plan import HOST, ONE_DEVICE, Plan
from ....passes.step_inputs import shape_in
from ...core.errors import FxhloError
from ...core.signature import Signature
from ...core.targets import Target

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheSpec

Rows = Literal["blocks", "slots", "batch"]


@dataclass(frozen=True, kw_only=True)
class StateSpec(ABC):
    """One state of one layer. name: the program's argument, whose new value is the result `<name>.updated`.

    shape: sizes or symbols: "num_blocks" of vLLM's pool, "num_slots" of requests and one more. dtype: numpy's name. rows: who
    assigns the rows of dimension 0 to requests: "blocks" is vLLM's block pool, through the block table of the state's group;
    "slots" is the batch, one row for as long as a request runs; "batch" are the rows of the batch itself. reset: when a row's values
    are no longer read: "never" where lengths say which are; "begin" where a request's first token starts from zero.
    """

    layer: str
    name: str
    shape: tuple[int | str, ...]
    dtype: str
    rows: Rows = "blocks"
    reset: Literal["never", "begin"] = "never"

    def shape_in(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with `sizes` in place of symbols."""
        return shape_in(self.shape, sizes)

    def bytes_in(self, sizes: Mapping[str, int], plan: Plan = ONE_DEVICE, target: Target = HOST) -> int:
        """The bytes of all rows, on all devices of the plan. Only blocks are padded as the target's memory is: kernels read them row by row,
        and the compiler lays out the other states without padding."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return plan.bytes(self.name, self.shape_in(sizes), dtype.itemsize, target if self.rows == "blocks" else HOST)

    @abstractmethod
    def for_vllm(self) -> KVCacheSpec | None:
        """The spec by which vLLM's cache manager assigns the rows; None where the batch does."""


def check_states(
    specs: Sequence[StateSpec], sizes: Mapping[str, int], *signatures: Signature, plan: Plan = ONE_DEVICE
) -> None:
    """Raises FxhloError where a program's states are not those of the layers. sizes: of the symbols in their shapes. signatures: one, or
    those of a program's stages. plan: how the states lie."""
    wanted = [(state.name, state.shape, state.dtype) for one in signatures for state in one.states]
    have = [(spec.name, plan.shape(spec.name, spec.shape_in(sizes)), spec.dtype) for spec in specs]
    if sorted(wanted) != sorted(have):
        differing = sorted({name for name, *_ in {*wanted} ^ {*have}})
        raise FxhloError(
            f"the program's states differ from those of the model's layers: {', '.join(differing)}",
            next_step="report this as a bug of fxhlo, with the model's config.json",
        )
