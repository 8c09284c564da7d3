"""Which ops are taken apart before lowering, and which are kept because they have a rule of their own.

torch's core decompositions are the base, torch's larger table fills what they leave, and our own
expansions are for ops that torch takes apart in no way that fits. An op with a rule is never decomposed: its rule is shorter, faster to emit,
and keeps the meaning visible in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from ...passes.fx.random_key import DISTRIBUTIONS
from ..registry import overload_name, rules
from .expansions import EXPANSIONS, VIEWS


@cache
def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """Overload -> function, without the ops that have rules."""
    keep = {*rules(), *(overload_name(op) for op in DISTRIBUTIONS)}  # random ops are a pass's
    larger = {op: function for op, function in torch._decomp.decomposition_table.items() if _functional(op)}
    table = {**larger, **torch.export.default_decompositions(), **EXPANSIONS}
    apart = {
        op: function
        for op, function in table.items()
        if isinstance(op, torch._ops.OpOverload) and overload_name(op) not in keep
    }
    return {**apart, **VIEWS}


def _functional(op: object) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op.namespace == "aten" and not op._schema.is_mutable
