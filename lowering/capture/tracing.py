"""What torch.export and make_fx share here: the count of traces, the kernels that are replaced while one runs, and error locations.

Guaranteed: no trace starts in a sealed process (runtime/core/seal.py): SealedError is raised.
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
"""The number of models that this process has traced; it does not grow once a serving process is ready."""


def count_trace() -> None:
    """Counts a trace that is about to start. Raises SealedError in a sealed process."""
    global captures
    seal.check("a model was about to be traced")
    captures += 1


@contextmanager
def our_decompositions() -> Iterator[None]:
    """Removes torch's Python kernels of ops that have a decomposition of ours or a rule: they run before any decomposition table and
    differ from ATen's results. flex_attention, a region with two functions of the model, is decomposed as eager torch computes it."""
    resizes = [attrgetter(name)(torch.ops) for name in rules() if "upsample" in name]
    ours = [*DECOMPOSITIONS, *resizes]
    with python_kernels_replaced(ours, {flex_attention: decomposed_flex_attention}, ABOVE_TABLES):
        yield


_OURS = f"{Path(__file__).parents[1]}/"


def user_frame(problem: BaseException) -> str | None:
    """ "file:line" of the innermost frame of the user's code in the traceback; None where it has none."""
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if not any(part in frame.filename for part in ("/torch/", "/fxhlo/", _OURS, "<"))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def first_lines(problem: BaseException, count: int = 3) -> str:
    """The error's type and the first `count` lines of its text, on one line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: " + " ".join(lines[:count])
