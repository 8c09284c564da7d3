"""Defines a kernel: a named, versioned composite with one reference and several implementations.

Comes in: a torch schema, an eager reference, and per target a JAX function.
Goes out: a frozen `Kernel` that the catalog registers as `torch.ops.fxhlo.<name>` and that legalization
(`passes/hlo/legalize.py`) replaces by the first implementation that supports the operands and the target.
Guaranteed: nothing here compiles; what a kernel supports is known before a compiler runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from ..runtime.core.targets import Target
from .partition import Rule

if not __name__.startswith("fxhlo."):
    raise ImportError("import this package as fxhlo.kernels: under its bare name there would be two of each registry")


FLOATING = ("bfloat16", "float16", "float32", "float64")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class TensorSpec:
    """Static shape and dtype of one operand. `dtype` is a numpy dtype (ml_dtypes for bfloat16, fp8)."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Operands(tuple[TensorSpec, ...]):
    """The operands that are present, in the schema's order; `named` maps the schema's names to them.

    Absent optional operands are in neither: `operands.named.get("sinks")` is None.
    """

    named: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, names: Iterable[str], specs: Iterable[TensorSpec]) -> Operands:
        named = dict(zip(names, specs, strict=True))
        made = cls(named.values())
        made.named = named
        return made


def _anything(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run a kernel on one family of targets ("cpu", "tpu", "cuda", or "any").

    `lower(*operands, **attributes)` is a JAX function over arrays with the operands' shapes; it returns
    one array, or a tuple in the order of the kernel's results. Absent operands are left out. If it has a parameter
    `target`, it is called with the `Target` that it is lowered for: tile sizes depend on that, not on a device, since
    there may be none. While a TPU implementation is traced, `pltpu.get_tpu_info()` describes that generation.
    `supports(operands, attributes, target)` returns None, or the reason (one clause, lower case) why it does not support
    them. It reads shapes, dtypes and the target's generation, memory and tile sizes, and compiles nothing. It may omit the
    third parameter if it is the same for every target.
    `uniform`: whether it is lowered to the same ops for operands of any sizes, so that those stand in types and attributes alone. What is emitted
    for one bucket is taken for others then (lowering/buckets.py).
    `row_major`: operands whose memory the implementation addresses itself, and which must therefore be row-major;
    if one is an argument of the module, its layout is pinned there (passes/hlo/layouts.py).
    """

    target: str
    name: str
    lower: Callable[..., Any]
    supports: Callable[..., str | None] = _anything
    row_major: tuple[str, ...] = ()
    uniform: bool = False

    @classmethod
    def in_folder(
        cls,
        package: str,
        target: str,
        name: str,
        *,
        file: str | None = None,
        row_major: tuple[str, ...] = (),
        uniform: bool = False,
    ) -> Implementation:
        """The implementation in a kernel's folder: `lower` and `supports` of `<target>.py`, or of `xla.py` for "any"; or of a `file`.

        The file is imported when either is first called: importing jax and Pallas takes two seconds, and a process that does not
        lower needs neither.
        """
        module = f"{package}.{file or ('xla' if target == 'any' else target)}"

        def lower(*operands: Any, target: Target | None = None, **named: Any) -> Any:
            function = import_module(module).lower
            return function(*operands, **named, **({"target": target} if target and _takes_target(function) else {}))

        def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
            return _ask(import_module(module).supports, operands, attributes, target)

        return cls(target, name, lower, supports, row_major, uniform)

    def refusal(self, operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
        """None, or the reason why this implementation does not support these operands on `target`: one clause, lower case."""
        if self.target not in (target.family, "any"):
            return f"it runs on {self.target} alone"
        return _ask(self.supports, operands, attributes, target)

    def bound(self, target: Target) -> Callable[..., Any]:
        """`lower` bound to one target; takes operands and attributes by name."""
        if not _takes_target(self.lower):
            return self.lower

        def lower(**named: Any) -> Any:
            return self.lower(**named, target=target)

        return lower


def _ask(
    supports: Callable[..., str | None], operands: Operands, attributes: Mapping[str, Any], target: Target
) -> str | None:
    if _parameters(supports) == 2:
        return supports(operands, attributes)
    return supports(operands, attributes, target)


@cache
def _parameters(function: Callable[..., Any]) -> int:
    return len(inspect.signature(function).parameters)


@cache
def _takes_target(function: Callable[..., Any]) -> bool:
    return "target" in inspect.signature(function).parameters


@dataclass(frozen=True)
class Case:
    """One case of a kernel's matrix: a row in docs/kernels.md, compiled for every target.

    name: the shape class, such as "decode, head 128, page 16". operands: by the schema's names, without absent
    optional ones. attributes: all of the schema's.
    values: generates the operands as numpy arrays, to compare every implementation (Pallas in its
        interpreter) with the reference. None if that would take too long, or another case covers it.
    tolerance: the largest difference allowed, relative to the reference's largest magnitude; 0: equal bit for bit.
    """

    name: str
    operands: Mapping[str, TensorSpec]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: Callable[[np.random.Generator], Mapping[str, np.ndarray]] | None = None
    tolerance: float = 0.0


@dataclass(frozen=True)
class Kernel:
    """A composite `fxhlo.<name>` of one `version`.

    schema: the torch schema, tensors first, then attributes (int, float, bool, str), for instance
        "sample(Tensor logits, Tensor temperature, *, int count) -> Tensor".
    reference: eager torch; defines the composite's semantics. The emitter traces it to get the decomposition, so
        it must be traceable with fake tensors: no data-dependent shapes, no Python branches on values.
    fake: result tensors (torch.empty-like) from the operands, for fake tensors.
    check: run by the eager op before the reference; raises IndexError for an out-of-bounds read of an
        operand, with the native kernel's text. The reference itself is traced, and cannot branch on values.
    implementations: tried in order for a target; if none supports the operands, the reference is inlined.
    dtypes: operand -> the names of its supported dtypes; an operand not listed may have any. `fxhlo.jax` rejects others at
        the call, since a torch reference would silently accept, for instance, float block tables.
    aliases: result index -> operand index, for results that are the updated operand (state).
    source: the paper, spec section or file that the semantics come from.
    cases: returns the kernel's `Case`s (cases.py of its folder); called only to build the matrix.
    uniform: whether the reference has the same ops for operands of any sizes, as an implementation may.
    partition: how a call runs on several devices (kernels/partition.py); None: a program that calls it runs on one alone.
    on_a_device: what a device of a mesh runs where no implementation takes its part; None: the reference stands in the module, and
        XLA partitions it, which needs operands of the model's shapes.
    over_context: the module with `part`, `weighted` and `merged`, for devices that have other keys of the same heads; see
        kernels/paged_attention/partition_xla.py.
    work: minimum (flops, bytes of memory traffic) of any implementation for these operands and attributes; None
        if they follow from the matmuls of the reference and the sizes of the operands.
    """

    name: str
    version: int
    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    check: Callable[..., None] | None = None
    implementations: tuple[Implementation, ...] = ()
    dtypes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[int, int] = field(default_factory=dict)
    source: str = ""
    cases: Callable[[], tuple[Case, ...]] = tuple
    uniform: bool = False
    partition: Rule | None = None
    on_a_device: Implementation | None = None
    over_context: str | None = None
    work: Callable[[Operands, Mapping[str, Any]], tuple[float, float]] | None = None

    def choice(
        self, operands: Operands, attributes: Mapping[str, Any], target: Target
    ) -> tuple[Implementation | None, tuple[str, ...]]:
        """(first implementation that supports the operands, or None for the reference; the reasons why those before it do not)."""
        reasons: list[str] = []
        for implementation in self.implementations:
            if implementation.target not in (target.family, "any"):
                continue
            refusal = implementation.refusal(operands, attributes, target)
            if refusal is None:
                return implementation, tuple(reasons)
            reasons.append(f"{implementation.name}: {refusal}")
        alone = f"{target.family} needs no kernel of its own for it: its compiler fuses the reference"
        return None, tuple(reasons) or (alone,)
