"""Symbolic sizes while torch.export traces: 0 and 1 are not specialized, and each size keeps the user's name and range.

Plain torch.export assumes that a dynamic size is 2 or more and records no guard for it. Under `backed_size_oblivious` an op that
branches on a size of 1 takes its general branch, and a branch in the model's Python records a guard. lowering/emit/small_sizes.py
checks the ops' general branches when such a size is bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from ...passes.program import source_in
from ...passes.torch_private import (
    ShapeEnv,
    hint_kind,
    leaves_with_shapes,
    pytree,
    replacements_noted,
    zero_and_one_not_specialized,
)
from ...runtime.core.errors import FxhloError
from ..errors import CaptureError


@dataclass(frozen=True)
class Asked:
    """One dynamic dimension as the user declared it. name: None for Dim.AUTO and Dim.DYNAMIC. minimum: the smallest size."""

    name: str | None
    minimum: int


@dataclass(frozen=True)
class Sizes:
    """asked: per leaf of the user's inputs, its dynamic dimensions by index. any_size: whether the trace did not specialize 0 and 1."""

    asked: Sequence[Mapping[int, Asked]] = ()
    any_size: bool = False


def export_any_size(export: Callable[[Any], ExportedProgram], dynamic_shapes: Any) -> tuple[ExportedProgram, bool]:
    """Returns `export(dynamic_shapes)`, and whether its sizes may also be 0 or 1. Raises what torch.export raises."""
    try:
        with zero_and_one_not_specialized():
            return export(dynamic_shapes), True
    except FxhloError:
        raise
    except Exception as problem:
        relaxed = _hints(dynamic_shapes) if _only_excludes_a_number(problem) else None
    if relaxed is not None:
        try:
            with zero_and_one_not_specialized():
                return export(relaxed), True
        except Exception:
            pass  # the plain export below raises an error with the user's own names
    return export(dynamic_shapes), False


def _only_excludes_a_number(problem: Exception) -> bool:
    """Whether torch.export's only objection is a guard that excludes one size, such as 1: for Dim.DYNAMIC it records such a guard."""
    violations = re.findall(r"^\s*- (.*)$", str(problem), re.MULTILINE)
    return bool(violations) and all(re.search(r"generated guard .* != \d+\.?$", line) for line in violations)


def _hints(dynamic_shapes: Any) -> Any | None:
    """dynamic_shapes with `Dim.DYNAMIC` for each named dimension; None where one is derived from another."""
    derived = False

    def hint(leaf: object) -> object:
        nonlocal derived
        derived = derived or hasattr(leaf, "root")
        return Dim.DYNAMIC(min=leaf.min, max=_maximum(leaf)) if isinstance(leaf, Dim) else leaf

    if hasattr(dynamic_shapes, "dynamic_shapes"):
        return None
    hinted = pytree.tree_map_only(Dim, hint, dynamic_shapes, is_leaf=lambda leaf: isinstance(leaf, Dim))
    return None if derived else hinted


def _maximum(dim: Dim) -> int | None:
    return dim.max if isinstance(dim.max, int) and dim.max < 2**62 else None


def asked_sizes(
    module: torch.nn.Module, args: Sequence[object], kwargs: Mapping[str, object] | None, dynamic_shapes: Any
) -> list[dict[int, Asked]]:
    """Returns the dynamic dimensions of each leaf of the inputs, in order; a derived dimension counts as its root.

    dynamic_shapes: accepted by torch.export already; entries are matched as torch does, by argument name or position.
    """
    if not dynamic_shapes:
        return []
    return [_asked_of(shape) for shape in leaves_with_shapes(module, tuple(args), dict(kwargs or {}), dynamic_shapes)]


def _asked_of(shape: object) -> dict[int, Asked]:
    """The dynamic dimensions of one leaf. shape: its entry in dynamic_shapes."""
    parts = (
        dict(shape)
        if isinstance(shape, Mapping)
        else dict(enumerate(shape))
        if isinstance(shape, tuple | list)
        else {0: shape}
    )
    asked = {index: _asked(dim) for index, dim in parts.items()}
    return {index: one for index, one in asked.items() if one is not None}


def _asked(dim: Any) -> Asked | None:
    root = getattr(dim, "root", dim)
    if isinstance(root, Dim):
        return Asked(root.__name__, root.min if isinstance(root.min, int) else 0)
    if hint_kind(root) in ("AUTO", "DYNAMIC"):
        return Asked(None, root.min or 0)
    return None


@contextmanager
def sizes_stay_symbolic(exported: ExportedProgram, sizes: Sizes) -> Iterator[None]:
    """Wraps the decomposition of `exported`. Raises CaptureError with the line where a symbolic size was specialized."""
    symbols, environment = _symbols(exported)
    if environment is None:
        yield
        return
    lines: dict[sympy.Symbol, str | None] = {}

    def note(symbol: sympy.Symbol) -> None:
        lines.setdefault(symbol, source_in(fx.traceback.get_current_meta().get("stack_trace")))

    with replacements_noted(environment, note), zero_and_one_not_specialized() if sizes.any_size else nullcontext():
        yield
    for symbol, place in symbols.items():
        number = environment.replacements.get(symbol)
        if number is not None and number.is_number:
            raise CaptureError(
                f"the dynamic size {place} was made the number {number} while torch decomposed an op",
                where=lines.get(symbol),
                next_step="give that size as a static one (no dynamic_shapes entry), or write the op in others that keep it symbolic",
            )


def _symbols(exported: ExportedProgram) -> tuple[dict[sympy.Symbol, str], ShapeEnv | None]:
    """The symbols of the inputs' sizes, each with the first dimension that has it, such as "x.0", and their environment."""
    found: dict[sympy.Symbol, str] = {}
    environment = None
    for node in exported.graph.nodes:
        val = node.meta.get("val") if node.op == "placeholder" else None
        for index, size in enumerate(val.shape if isinstance(val, torch.Tensor) else [val]):
            if isinstance(size, torch.SymInt):
                environment = size.node.shape_env
                place = f"{node.name}.{index}" if isinstance(val, torch.Tensor) else node.name
                for symbol in size.node.expr.free_symbols:
                    found.setdefault(symbol, place)
    return found, environment
