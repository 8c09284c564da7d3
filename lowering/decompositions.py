"""Which ops are taken apart before lowering, and which are kept because they have a rule of their own.

torch's core decompositions are the base. An op with a rule is never decomposed: its rule is shorter, faster to emit,
and keeps the meaning visible in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from .registry import overload_name, rules


@cache
def decompositions() -> dict[torch._ops.OperatorBase, Callable]:
    """torch's table without the ops that have rules."""
    table = torch.export.default_decompositions()
    keep = set(rules())
    return {op: function for op, function in dict(table).items() if overload_name(op) not in keep}
