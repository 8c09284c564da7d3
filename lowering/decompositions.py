"""Which ops are taken apart before lowering, and which are kept because they have a rule of their own.

torch's core decompositions are the base. An op with a rule is never decomposed: its rule is shorter, faster to emit,
and keeps the meaning visible in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from .registry import overload_name, rules

EXTRA = (
    "aten.grid_sampler_2d.default",
    "aten._native_batch_norm_legit_functional.default",
)
"""Ops of torch's core set that have no rule, but a decomposition in torch's larger table."""


@cache
def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """torch's table without the ops that have rules."""
    table = dict(torch.export.default_decompositions())
    table.update({op: function for op, function in torch._decomp.decomposition_table.items() if _named(op) in EXTRA})
    keep = set(rules())
    return {
        op: function
        for op, function in table.items()
        if isinstance(op, torch._ops.OpOverload) and overload_name(op) not in keep
    }


def _named(op: object) -> str:
    return overload_name(op) if isinstance(op, torch._ops.OpOverload) else ""
