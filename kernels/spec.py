"""What a kernel is: a named, versioned composite with one meaning and several implementations.

Comes in: a torch schema, an eager reference, and per target a JAX function.
Goes out: a frozen `Kernel` that the catalog registers as `torch.ops.fxhlo.<name>` and that legalization
(`passes/hlo/legalize.py`) replaces by the first implementation whose `supports` answers None.
Guaranteed: nothing here compiles anything; a kernel says what it supports before a compiler runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

if not __name__.startswith("fxhlo."):
    raise ImportError("import this package as fxhlo.kernels: under its bare name there would be two of each registry")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one operand, all static. `dtype` is a numpy dtype (ml_dtypes for bfloat16, fp8)."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Implementation:
    """One way to run a kernel on one family of targets.

    `supports(operands, attributes)` returns None, or the reason (one clause, lower case) why it does not take them.
    `lower(*operands, **attributes)` is a JAX function over arrays with the operands' shapes; it returns
    one array, or a tuple in the order of the kernel's results.
    """

    target: str
    name: str
    lower: Callable[..., Any]
    supports: Callable[[tuple[TensorSpec, ...], Mapping[str, Any]], str | None] = lambda operands, attributes: None


@dataclass(frozen=True)
class Case:
    """One point of a kernel's matrix: what docs/kernels.md has a row for, and what is compiled for every target.

    name: the shape class, such as "decode, head 128, page 16". operands: by the schema's names; left out where the
    operand is optional and absent. attributes: all of the schema's.
    """

    name: str
    operands: Mapping[str, TensorSpec]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    """A composite `fxhlo.<name>` of one `version`.

    schema: the torch schema, tensors first, then attributes (int, float, bool, str), for instance
        "sample(Tensor logits, Tensor temperature, *, int count) -> Tensor".
    reference: eager torch; what the composite means. The emitter traces it to get the decomposition, so
        it must be traceable with fake tensors: no data-dependent shapes, no Python branches on values.
    fake: result tensors (torch.empty-like) from the operands, for fake tensors.
    implementations: tried in order for a target; where none supports the operands the reference is inlined.
    aliases: result index -> operand index, for results that are the updated operand (state).
    source: the paper, spec section or file where the semantics come from.
    cases: makes the kernel's `Case`s (cases.py of its folder); called only where the matrix is made.
    """

    name: str
    version: int
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    implementations: tuple[Implementation, ...] = ()
    aliases: Mapping[int, int] = field(default_factory=dict)
    source: str = ""
    cases: Callable[[], tuple[Case, ...]] = tuple
