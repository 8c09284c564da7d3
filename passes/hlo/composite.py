"""Reads a `stablehlo.composite`: which kernel it calls, with which operands and attributes.

Comes in: an operation of a portable module. Goes out: a `Composite`. lowering/emit/composite.py writes what is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ...kernels.spec import Operands, TensorSpec
from ...runtime.core.dtypes import BY_STABLEHLO
from ..mlir import ir

Attribute = bool | int | float | str
"""What a composite's attribute can be in Python."""


@dataclass(frozen=True)
class Composite:
    """One call of a composite: ours ("fxhlo.sample"), or one that another front end made.

    types: of its operands, as MLIR prints them. decomposition: symbol of the function that holds the reference.
    """

    operation: ir.Operation
    name: str
    version: int
    types: tuple[str, ...]
    decomposition: str

    @classmethod
    def of(cls, operation: ir.Operation) -> Composite:
        """Of a `stablehlo.composite`."""
        given = operation.attributes
        return cls(
            operation,
            ir.StringAttr(given["name"]).value,
            ir.IntegerAttr(given["version"]).value if "version" in given else 0,
            tuple(str(operand.type) for operand in operation.operands),
            ir.FlatSymbolRefAttr(given["decomposition"]).value,
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two calls that one function can serve."""
        return self.name, self.version, self.types, str(self.operation.attributes["composite_attributes"])

    @cached_property
    def operands(self) -> Operands:
        """Of a kernel of ours: the operands that are there, by the schema's names."""
        names = ir.ArrayAttr(self._encoded["operands"])
        types = [operand.type for operand in self.operation.operands]
        return Operands.of((ir.StringAttr(name).value for name in names), map(tensor_spec, types))

    @cached_property
    def attributes(self) -> dict[str, Attribute]:
        """Of a kernel of ours: its attributes as Python values."""
        return {name: _python(attribute) for name, attribute in self._encoded.items() if name != "operands"}

    @cached_property
    def _encoded(self) -> dict[str, ir.Attribute]:
        entries = ir.DictAttr(self.operation.attributes["composite_attributes"])
        return {entry.name: entry.attr for entry in entries}  # type: ignore[attr-defined]  # the stubs have no __iter__


def composites(operation: ir.Operation) -> list[ir.Operation]:
    """Every `stablehlo.composite` inside `operation`, those of nested regions included, in order.

    Without the portable form of CHLO's ops (`chlo.erf`, mlir.portable): XLA implements those.
    """
    return [
        inner
        for inner in operations(operation)
        if inner.name == "stablehlo.composite" and not ir.StringAttr(inner.attributes["name"]).value.startswith("chlo.")
    ]


def operations(operation: ir.Operation) -> Iterator[ir.Operation]:
    """Everything inside `operation`, itself first."""
    found: list[ir.Operation] = []

    def keep(inner: ir.Operation) -> ir.WalkResult:
        found.append(inner)
        return ir.WalkResult.ADVANCE

    operation.walk(keep, ir.WalkOrder.PRE_ORDER)
    return iter(found)


def tensor_spec(type_: ir.Type) -> TensorSpec:
    """Shape and dtype of a tensor type."""
    ranked = ir.RankedTensorType(type_)
    return TensorSpec(tuple(ranked.shape), BY_STABLEHLO[str(ranked.element_type)].numpy)


def _python(attribute: ir.Attribute) -> Attribute:
    for kind in (ir.BoolAttr, ir.IntegerAttr, ir.FloatAttr, ir.StringAttr):
        if isinstance(attribute, kind):
            return kind(attribute).value
    raise TypeError(f"{attribute} is no attribute that lowering/emit/composite.py writes")
