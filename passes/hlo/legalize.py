"""Legalization: each `stablehlo.composite` of a portable module becomes what the target runs.

Comes in: a portable module and a target. Goes out: a module without composites, and a decision per composite:
which implementation was taken, or why the reference was inlined.
Guaranteed: an implementation is taken only where its `supports` says so; nothing compiles here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...kernels.catalog import kernels
from ...kernels.spec import Implementation, Kernel, Operands, TensorSpec
from ...runtime.core.dtypes import BY_STABLEHLO
from ...runtime.core.errors import FxhloError
from ...runtime.core.targets import Target
from ..mlir import adopt, bytecode, context, func, ir, parse
from .layouts import pin_row_major


class LegalizeError(FxhloError):
    """A composite that no kernel of this installation knows, or whose implementation failed to lower."""


@dataclass(frozen=True)
class Decision:
    """What became of one kind of composite. `implementation` is None where the reference was inlined."""

    kernel: str
    implementation: str | None
    reasons: tuple[str, ...]
    count: int
    operands: str


@dataclass(frozen=True)
class Legalized:
    """The module for one target, what was decided, and the custom calls it needs at run time."""

    bytecode: bytes
    decisions: tuple[Decision, ...]
    custom_calls: tuple[str, ...]


def legalize(module: bytes, target: str | Target) -> Legalized:
    """Replaces every composite of `module` (MLIR bytecode, text or a portable artifact) for `target`."""
    target = target if isinstance(target, Target) else Target.parse(target)
    into = context()
    parsed = parse(module, into)
    with into, ir.Location.unknown():
        work = _Legalizer(parsed, target)
        for operation in list(_composites(parsed.operation)):
            work.replace(operation)
        _erase_unused(parsed)
        if work.row_major:
            pin_row_major(parsed, work.row_major)
        return Legalized(
            bytecode(parsed), tuple(work.decisions.values()), tuple(sorted(_custom_calls(parsed.operation)))
        )


class _Legalizer:
    def __init__(self, module: ir.Module, target: Target) -> None:
        self.module = module
        self.target = target
        self.symbols: dict[object, str] = {}
        self.decisions: dict[object, Decision] = {}
        self.row_major: set[str] = set()

    def replace(self, operation: ir.Operation) -> None:
        attributes = operation.attributes
        name = ir.StringAttr(attributes["name"]).value
        version = ir.IntegerAttr(attributes["version"]).value if "version" in attributes else 0
        key = (
            name,
            str(attributes["composite_attributes"]),
            tuple(str(operand.type) for operand in operation.operands),
        )
        symbol = self.symbols.get(key)
        if symbol is None:
            symbol = self.symbols[key] = self._choose(key, name, version, operation)
        else:
            old = self.decisions[key]
            self.decisions[key] = Decision(old.kernel, old.implementation, old.reasons, old.count + 1, old.operands)
        with ir.InsertionPoint(operation), operation.location:
            call = func.CallOp(
                [result.type for result in operation.results],
                ir.FlatSymbolRefAttr.get(symbol),
                list(operation.operands),
            )
        for old_result, new_result in zip(operation.results, call.results, strict=True):
            old_result.replace_all_uses_with(new_result)
        operation.erase()

    def _choose(self, key: tuple, name: str, version: int, operation: ir.Operation) -> str:
        kernel = kernels().get(name)
        operands = ", ".join(key[2])
        reference = ir.FlatSymbolRefAttr(operation.attributes["decomposition"]).value
        if kernel is None or kernel.version != version:
            reason = f"there is no kernel {name} version {version} in this installation"
            self.decisions[key] = Decision(name, None, (reason,), 1, operands)
            return reference
        present, attributes = _attributes(operation)
        specs = Operands.of(present, (tensor_spec(operand.type) for operand in operation.operands))
        reasons: list[str] = []
        for implementation in kernel.implementations:
            if implementation.target not in (self.target.family, "any"):
                continue
            refusal = implementation.refusal(specs, attributes, self.target)
            if refusal is None:
                self.decisions[key] = Decision(name, implementation.name, tuple(reasons), 1, operands)
                self.row_major |= {
                    type_ for type_, name in zip(key[2], present, strict=True) if name in implementation.row_major
                }
                return self._lower(kernel, implementation, specs, attributes)
            reasons.append(f"{implementation.name}: {refusal}")
        reasons = reasons or [f"no implementation for {self.target.family}"]
        self.decisions[key] = Decision(name, None, tuple(reasons), 1, operands)
        return reference

    def _lower(
        self, kernel: Kernel, implementation: Implementation, specs: Operands, attributes: Mapping[str, Any]
    ) -> str:
        prefix = f"{implementation.name}_{kernel.name}_{len(self.symbols)}"
        try:
            text = lower_implementation(implementation, specs, attributes, self.target)
        except Exception as problem:
            raise LegalizeError(
                f"{implementation.name} of fxhlo.{kernel.name} says it supports {[(s.shape, s.dtype.name) for s in specs]} "
                f"on {self.target} and failed: {problem}",
                next_step="its supports() must give a reason for these operands; report this as a bug of fxhlo",
            ) from problem
        return adopt(text, self.module, prefix)


def lower_implementation(
    implementation: Implementation, operands: Operands, attributes: Mapping[str, Any], target: Target
) -> str:
    """The implementation as StableHLO text with a `main` over the operands. Needs no device of the target."""
    import jax

    from ...runtime.core import pjrt

    pjrt.settle()  # lowering looks at jax's devices
    lower, names = implementation.bound(target), tuple(operands.named)

    def call(*arrays: Any) -> Any:
        return lower(**dict(zip(names, arrays, strict=True)), **attributes)

    shapes = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in operands]
    wide = any(spec.dtype.itemsize == 8 and spec.dtype.kind in "iuf" for spec in operands)
    with jax.enable_x64(wide), _device_of(target):
        traced = jax.jit(call, keep_unused=True).trace(*shapes)
        return traced.lower(lowering_platforms=(target.family,)).as_text()


def _device_of(target: Target) -> AbstractContextManager[Any]:
    """What Pallas asks which TPU it lowers for: a mesh without axes, whose device is of the target's kind."""
    if target.family != "tpu":
        return nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind=target.device_kind, num_cores=target.cores, platform="tpu")
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def composite_operands(operation: ir.Operation) -> tuple[Operands, dict[str, Any]]:
    """The operands of a `stablehlo.composite` of ours by name, and its attributes as Python values."""
    present, attributes = _attributes(operation)
    return Operands.of(present, (tensor_spec(operand.type) for operand in operation.operands)), attributes


def _attributes(operation: ir.Operation) -> tuple[list[str], dict[str, Any]]:
    """The names of the operands that are there, and the attributes as Python values."""
    encoded = ir.DictAttr(operation.attributes["composite_attributes"])
    decoded: dict[str, Any] = {}
    present: list[str] = []
    for entry in encoded:  # type: ignore[attr-defined]  # the stubs leave __iter__ out
        attribute = entry.attr
        if entry.name == "operands":
            present = [ir.StringAttr(name).value for name in ir.ArrayAttr(attribute)]
        elif isinstance(attribute, ir.BoolAttr):
            decoded[entry.name] = ir.BoolAttr(attribute).value
        elif isinstance(attribute, ir.IntegerAttr):
            decoded[entry.name] = ir.IntegerAttr(attribute).value
        elif isinstance(attribute, ir.FloatAttr):
            decoded[entry.name] = ir.FloatAttr(attribute).value
        else:
            decoded[entry.name] = ir.StringAttr(attribute).value
    return present, decoded


def tensor_spec(type_: ir.Type) -> TensorSpec:
    """Shape and dtype of a tensor type."""
    ranked = ir.RankedTensorType(type_)
    return TensorSpec(tuple(ranked.shape), BY_STABLEHLO[str(ranked.element_type)].numpy)


def _operations(operation: ir.Operation) -> Iterator[ir.Operation]:
    for region in operation.regions:
        for block in region.blocks:
            for child in block.operations:
                yield child.operation
                if child.operation.regions:
                    yield from _operations(child.operation)


def _composites(operation: ir.Operation) -> Iterator[ir.Operation]:
    return (child for child in _operations(operation) if child.name == "stablehlo.composite")


def _custom_calls(operation: ir.Operation) -> set[str]:
    return {
        ir.StringAttr(child.attributes["call_target_name"]).value
        for child in _operations(operation)
        if child.name == "stablehlo.custom_call"
    }


def _erase_unused(module: ir.Module) -> None:
    """Drops private functions that nothing calls any more (references that were replaced)."""
    functions = {ir.StringAttr(op.attributes["sym_name"]).value: op for op in module.body.operations}
    callees = {name: _callees(op.operation) for name, op in functions.items()}
    alive, todo = (
        set(),
        [name for name, op in functions.items() if ir.StringAttr(op.attributes["sym_visibility"]).value != "private"],
    )
    while todo:
        name = todo.pop()
        if name not in alive:
            alive.add(name)
            todo.extend(callees[name])
    for name, op in functions.items():
        if name not in alive:
            op.operation.erase()


def _callees(operation: ir.Operation) -> set[str]:
    found = set()
    for child in _operations(operation):
        if child.name == "func.call":
            found.add(ir.FlatSymbolRefAttr(child.attributes["callee"]).value)
        elif child.name == "stablehlo.composite":
            found.add(ir.FlatSymbolRefAttr(child.attributes["decomposition"]).value)
        elif "called_computations" in child.attributes:
            found.update(
                ir.FlatSymbolRefAttr(name).value for name in ir.ArrayAttr(child.attributes["called_computations"])
            )
    return found
