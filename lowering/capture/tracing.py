"""What every trace shares: the count of them, and where in the user's code a trace failed.

Guaranteed: a process that promised to trace no more (runtime/core/seal.py) raises SealedError instead.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

import torch

from ...passes.torch_private import flex_attention, python_kernels_replaced
from ...runtime.core import seal
from ..decompositions.attention import flex_attention as decomposed_flex_attention
from ..decompositions.table import ABOVE_TABLES, DECOMPOSITIONS
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
    """Without torch's Python kernels of ops that are decomposed by us or not at all: they lie above any table, and their results
    differ from ATen's. flex_attention, a region around two functions of the model, becomes what eager torch computes."""
    resizes = [attrgetter(name)(torch.ops) for name in rules() if "upsample" in name]
    ours = [*DECOMPOSITIONS, *resizes]
    with python_kernels_replaced(ours, {flex_attention: decomposed_flex_attention}, ABOVE_TABLES):
        yield


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
