"""Symbolic sizes while torch.export traces: a size of 0 or 1 is like any other, and each keeps the user's name and range.

Plain torch.export assumes that a dynamic size is 2 or more and notes no guard for it. Under `backed_size_oblivious` it takes the
general way where an op asks for a size of 1, and Python of the model that asks leaves a guard. lowering/emit/small_sizes.py checks
the ops' general ways when such a size is bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

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
    """What the user said of one dynamic dimension. name: None for Dim.AUTO and Dim.DYNAMIC. minimum: the least size wanted."""

    name: str | None
    minimum: int


@dataclass(frozen=True)
class Sizes:
    """asked: per leaf of the user's inputs, its dynamic dimensions by index. any_size: whether the trace took 0 and 1 as any other size."""

    asked: Sequence[Mapping[int, Asked]] = ()
    any_size: bool = False


def export_any_size(export: Callable[[Any], ExportedProgram], dynamic_shapes: Any) -> tuple[ExportedProgram, bool]:
    """`export(dynamic_shapes)`, and whether its sizes may be 0 and 1 too. Raises what torch.export raises."""
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
            pass  # the plain way below says what is wrong in the user's own names
    return export(dynamic_shapes), False


def _only_excludes_a_number(problem: Exception) -> bool:
    """Whether torch.export only minds that a named dimension may not have one size, such as 1: a hint takes that as a guard."""
    violations = re.findall(r"^\s*- (.*)$", str(problem), re.MULTILINE)
    return bool(violations) and all(re.search(r"generated guard .* != \d+\.?$", line) for line in violations)


def _hints(dynamic_shapes: Any) -> Any | None:
    """The tree with `Dim.DYNAMIC` in place of named dimensions; None where one is derived from another."""
    derived = False

    def hint(leaf: Any) -> Any:
        nonlocal derived
        derived = derived or hasattr(leaf, "root")
        return Dim.DYNAMIC(min=leaf.min, max=_maximum(leaf)) if isinstance(leaf, Dim) else leaf

    if hasattr(dynamic_shapes, "dynamic_shapes"):
        return None
    hinted = pytree.tree_map_only(Dim, hint, dynamic_shapes, is_leaf=lambda leaf: isinstance(leaf, Dim))
    return None if derived else hinted


def _maximum(dim: Any) -> int | None:
    return dim.max if isinstance(dim.max, int) and dim.max < 2**62 else None


def asked_sizes(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> list[dict[int, Asked]]:
    """For each leaf of the inputs, in order, its dynamic dimensions: `Dim("batch")`, and the root of a derived one.

    dynamic_shapes was accepted by torch.export; its entries are found as torch finds them, by argument name or place.
    """
    if not dynamic_shapes:
        return []
    return [_asked_of(shape) for shape in leaves_with_shapes(module, tuple(args), dict(kwargs or {}), dynamic_shapes)]


def _asked_of(shape: Any) -> dict[int, Asked]:
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
    """While `exported` is decomposed. Raises CaptureError with the line where a symbolic size was made a number."""
    symbols, environment = _symbols(exported)
    if environment is None:
        yield
        return
    lines: dict[Any, str | None] = {}

    def note(symbol: Any) -> None:
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


def _symbols(exported: ExportedProgram) -> tuple[dict[Any, str], ShapeEnv | None]:
    """The symbols of the inputs' sizes, each with the first place where it stands, and their environment."""
    found: dict[Any, str] = {}
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
