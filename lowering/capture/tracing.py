"""What every trace shares: the count of them, and where in the user's code a trace failed.

Guaranteed: a process that promised to trace no more (runtime/core/seal.py) raises SealedError instead.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch._C import DispatchKey
from torch._higher_order_ops import flex_attention

from ...runtime.core import seal
from ..decompositions.attention import flex_attention as expanded_flex_attention
from ..decompositions.table import DECOMPOSITIONS
from ..registry import rules

captures = 0
"""How many times this process traced a model: a serving process must not add to it once it is ready."""


def count_trace() -> None:
    """Notes that a model is traced; raises SealedError in a process that promised not to."""
    global captures
    seal.check("a model was about to be traced")
    captures += 1


@contextmanager
def our_decompositions() -> Iterator[None]:
    """Python kernels of torch take some ops apart below any decomposition table, with other results than ATen's: they are set aside.
    flex_attention, a region around two functions of the model, becomes what eager torch computes."""
    ops = [*DECOMPOSITIONS, *(attrgetter(name)(torch.ops) for name in rules() if "upsample" in name)]
    kernels: dict[Any, Any] = {op: dict(op.py_kernels) for op in [*ops, flex_attention]}
    try:
        for op in ops:
            for key in (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd):
                op.py_kernels.pop(key, None)
            op._dispatch_cache.clear()
        flex_attention.py_kernels[DispatchKey.Autograd] = expanded_flex_attention
        flex_attention._dispatch_cache.clear()
        yield
    finally:
        for op, before in kernels.items():
            op.py_kernels.update(before)
            op._dispatch_cache.clear()


_OURS = f"{Path(__file__).parents[1]}/"


def user_frame(problem: BaseException) -> str | None:
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if not any(part in frame.filename for part in ("/torch/", "/fxhlo/", _OURS, "<"))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def first_lines(problem: BaseException, count: int = 3) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: " + " ".join(lines[:count])
