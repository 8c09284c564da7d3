"""What a kernel is: a named, versioned composite with one meaning and several implementations.

Comes in: a torch schema, an eager reference, and per target a JAX function.
Goes out: a frozen `Kernel` that the catalog registers as `torch.ops.fxhlo.<name>` and that legalization
(`passes/hlo/legalize.py`) replaces by the first implementation that has nothing against the operands and the target.
Guaranteed: nothing here compiles anything; a kernel says what it supports before a compiler runs.
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

if not __name__.startswith("fxhlo."):
    raise ImportError("import this package as fxhlo.kernels: under its bare name there would be two of each registry")


FLOATING = ("bfloat16", "float16", "float32", "float64")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one operand, all static. `dtype` is a numpy dtype (ml_dtypes for bfloat16, fp8)."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Operands(tuple[TensorSpec, ...]):
    """The operands that are there, in the schema's order; `named` has them by the schema's names.

    An optional operand that is absent has no place and no name: `operands.named.get("sinks")` is None.
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
    one array, or a tuple in the order of the kernel's results. Absent operands are left out. Where it has a parameter
    `target`, it is called with the `Target` that it is lowered for: tile sizes come from there, not from a device, since
    there may be none. While a TPU's is traced, `pltpu.get_tpu_info()` answers for that generation.
    `supports(operands, attributes, target)` returns None, or the reason (one clause, lower case) why it does not take
    them. It looks at shapes, dtypes and the target's generation, memories and tiles, and compiles nothing. One that
    is the same for every target may leave out the third parameter.
    `row_major`: operands that it addresses by itself, so that they must lie in memory in the order of their dimensions;
    where one is a state of the module, its layout is pinned there (passes/hlo/layouts.py).
    """

    target: str
    name: str
    lower: Callable[..., Any]
    supports: Callable[..., str | None] = _anything
    row_major: tuple[str, ...] = ()

    @classmethod
    def in_folder(cls, package: str, target: str, name: str, *, row_major: tuple[str, ...] = ()) -> Implementation:
        """The implementation in a kernel's folder: `lower` and `supports` of `<target>.py`, or of `xla.py` for "any".

        The file is imported when either is first called: jax and Pallas take two seconds, and a process that lowers
        nothing needs neither.
        """
        module = f"{package}.{'xla' if target == 'any' else target}"

        def lower(*operands: Any, target: Target | None = None, **named: Any) -> Any:
            function = import_module(module).lower
            return function(*operands, **named, **({"target": target} if target and _takes_target(function) else {}))

        def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
            return _ask(import_module(module).supports, operands, attributes, target)

        return cls(target, name, lower, supports, row_major)

    def refusal(self, operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
        """None, or why this implementation does not take these operands on `target`: one clause, lower case."""
        if self.target not in (target.family, "any"):
            return f"it runs on {self.target} alone"
        return _ask(self.supports, operands, attributes, target)

    def bound(self, target: Target) -> Callable[..., Any]:
        """`lower` for one target, called with operands and attributes by name."""
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
    """One point of a kernel's matrix: what docs/kernels.md has a row for, and what is compiled for every target.

    name: the shape class, such as "decode, head 128, page 16". operands: by the schema's names; left out where the
    operand is optional and absent. attributes: all of the schema's.
    values: makes the operands as numpy arrays for a check of the numbers: every implementation (Pallas' in its
        interpreter) against the reference. None where that would take too long, or another case shows the same.
    tolerance: the largest difference allowed, as a part of the reference's largest magnitude; 0: equal bit for bit.
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
    reference: eager torch; what the composite means. The emitter traces it to get the decomposition, so
        it must be traceable with fake tensors: no data-dependent shapes, no Python branches on values.
    fake: result tensors (torch.empty-like) from the operands, for fake tensors.
    check: run by the eager op in front of the reference: raises IndexError where a value would be read from outside its
        operand, in the words of the native kernel. The reference itself is traced, and has no branch on values.
    implementations: tried in order for a target; where none supports the operands the reference is inlined.
    dtypes: operand -> the names of the dtypes that it may have; one that is not there may have any. `fxhlo.jax` refuses others at
        the call: a reference in torch would take float block tables without a word.
    aliases: result index -> operand index, for results that are the updated operand (state).
    source: the paper, spec section or file where the semantics come from.
    cases: makes the kernel's `Case`s (cases.py of its folder); called only where the matrix is made.
    work: (flops, bytes of memory) that any implementation must do at least for these operands and attributes; None
        where the products of the reference, and the operands that lie in memory, say it.
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
    work: Callable[[Operands, Mapping[str, Any]], tuple[float, float]] | None = None

    def choice(
        self, operands: Operands, attributes: Mapping[str, Any], target: Target
    ) -> tuple[Implementation | None, tuple[str, ...]]:
        """The first implementation without an objection, None for the reference; and why those before it were not taken."""
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
