"""Legalization: replaces each `stablehlo.composite` of a portable module by what the target runs.

Comes in: a portable module and a target. Goes out: a module without composites, and a decision per kind of composite:
which implementation was taken, or why its reference was.
Guaranteed: an implementation is taken only where its `supports` has no objection; nothing compiles here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...kernels.catalog import kernels
from ...kernels.spec import Implementation, Kernel, Operands
from ...runtime.core import native
from ...runtime.core.errors import FxhloError
from ...runtime.core.targets import Target
from ..mlir import adopt, context, erase_dead_functions, func, ir, parse, portable
from .calls import runs, turns
from .composite import Composite, composites, operations
from .implementation import Call, lower_implementation, prepare
from .layouts import pin_row_major


class LegalizeError(FxhloError):
    """An implementation that said it supports its operands and failed to lower."""


class OnlyDeclared(Exception):
    """References are needed that the module only declares (`emit` without references). symbols: of their functions."""

    def __init__(self, symbols: Collection[str]) -> None:
        super().__init__(*symbols)
        self.symbols = symbols


class SizesMatter(Exception):
    """What is taken for a composite may have other ops for operands of other sizes (`Implementation.uniform`)."""


@dataclass(frozen=True)
class Decision:
    """What became of `count` equal composites. implementation: None where the reference was taken.

    reasons: why the implementations before it (all, for the reference) were not taken. operands: the operands' types.
    """

    kernel: str
    implementation: str | None
    reasons: tuple[str, ...]
    count: int
    operands: str


@dataclass(frozen=True)
class Legalized:
    """The module for one target, what was decided, and the custom calls it needs at run time.

    bytecode: a portable StableHLO artifact, which other versions of jaxlib read.
    """

    bytecode: bytes
    decisions: tuple[Decision, ...]
    custom_calls: tuple[str, ...]


@dataclass(frozen=True)
class Taken:
    """What was taken for equal composites. kernel, operands, attributes: of each; None for one that is not ours."""

    kernel: Kernel | None
    operands: Operands | None
    attributes: Mapping[str, Any] | None
    implementation: Implementation | None
    decision: Decision

    @classmethod
    def of(cls, composite: Composite, implementation: Implementation | None, decision: Decision) -> Taken:
        kernel = kernels().get(composite.name)
        if kernel is None:
            return cls(None, None, None, implementation, decision)
        return cls(kernel, composite.operands, composite.attributes, implementation, decision)


@dataclass(frozen=True)
class InPlace:
    """A module whose composites were replaced, before it is made portable. taken: what `legalized.decisions` tell, to be decided again for
    other sizes. pinned: whether layouts of arguments were."""

    module: ir.Module
    taken: tuple[Taken, ...]
    custom_calls: tuple[str, ...]
    pinned: bool

    @property
    def legalized(self) -> Legalized:
        with self.module.context, ir.Location.unknown():
            return Legalized(portable(self.module), tuple(one.decision for one in self.taken), self.custom_calls)


def legalize(module: bytes, target: str | Target) -> Legalized:
    """Replaces every composite of `module` (MLIR bytecode, text or a portable artifact). Raises LegalizeError."""
    return in_place(parse(module, context()), target).legalized


def in_place(module: ir.Module, target: str | Target, *, uniform: bool = False) -> InPlace:
    """`legalize` of a module that is changed. uniform: nothing is lowered whose ops depend on sizes: raises SizesMatter. Raises LegalizeError."""
    with module.context, ir.Location.unknown():
        work = _Legalizer(module, Target.parse(target))
        work.prepare(uniform)
        for operation, count in _with_counts(module):
            work.replace(operation, count)
        erase_dead_functions(module)  # references that were replaced
        if work.row_major:
            pin_row_major(module, work.row_major)
        return InPlace(module, tuple(work.taken.values()), _custom_calls(module), bool(work.row_major))


def legalize_to_run(module: bytes, target: str | Target) -> Legalized:
    """`legalize` for a module that this process compiles next: the native kernels that it calls are built on return.

    `supports` asks whether they can be built and builds nothing. Where the build fails, the module is legalized again:
    the reason is known then, and implementations in StableHLO take over.
    """
    legalized = legalize(module, target)
    if set(legalized.custom_calls) & set(native.TARGETS) and native.unavailable() is not None:
        return legalize(module, target)
    return legalized


class _Legalizer:
    """One legalization. symbols: the function that serves each kind of composite. row_major: operand types to pin."""

    def __init__(self, module: ir.Module, target: Target) -> None:
        self.module = module
        self.target = target
        self.symbols: dict[object, str] = {}
        self.taken: dict[object, Taken] = {}
        self.row_major: set[str] = set()
        self.functions = ir.SymbolTable(module.operation)
        self.choices: dict[object, tuple[Implementation | None, tuple[str, ...]]] = {}

    def prepare(self, uniform: bool) -> None:
        """Chooses for every kind of composite, and lowers the implementations in one go. Raises OnlyDeclared, SizesMatter."""
        calls, declared = [], set()
        for composite in {one.key: one for one in map(Composite.of, composites(self.module.operation))}.values():
            implementation, _ = self.choices[composite.key] = self._choice(composite)
            if implementation is not None:
                calls.append(Call(implementation, composite.operands, composite.attributes, self.target))
            elif not self.functions[composite.decomposition].operation.regions[0].blocks:
                declared.add(composite.decomposition)
            if uniform and not _is_uniform(kernels().get(composite.name), implementation):
                raise SizesMatter(composite.name)
        if declared:
            raise OnlyDeclared(declared)
        prepare(calls)

    def _choice(self, composite: Composite) -> tuple[Implementation | None, tuple[str, ...]]:
        """The first implementation without an objection, None for the reference, and why those before it were not taken."""
        kernel = kernels().get(composite.name)
        if kernel is None or kernel.version != composite.version:
            return None, (f"this installation has no kernel {composite.name} version {composite.version}",)
        return kernel.choice(composite.operands, composite.attributes, self.target)

    def replace(self, operation: ir.Operation, count: int) -> None:
        """Puts a call of the chosen function in the composite's place. count: how often it runs."""
        composite = Composite.of(operation)
        # A composite of another front end may have the same name and another meaning each time.
        key = composite.key if composite.name in kernels() else (*composite.key, composite.decomposition)
        if key in self.symbols:
            before = self.taken[key]
            self.taken[key] = replace(before, decision=replace(before.decision, count=before.decision.count + count))
        else:
            self.symbols[key], decision = self._choose(composite)
            implementation, _ = self.choices[composite.key]
            self.taken[key] = Taken.of(composite, implementation, replace(decision, count=count))
        with ir.InsertionPoint(operation), operation.location:
            callee = ir.FlatSymbolRefAttr.get(self.symbols[key])
            call = func.CallOp([result.type for result in operation.results], callee, list(operation.operands))
        for old, new in zip(operation.results, call.results, strict=True):
            old.replace_all_uses_with(new)
        operation.erase()

    def _choose(self, composite: Composite) -> tuple[str, Decision]:
        """The symbol of what was chosen, and the decision."""
        types = ", ".join(composite.types)
        implementation, reasons = self.choices[composite.key]
        if implementation is None:
            return composite.decomposition, Decision(composite.name, None, reasons, 1, types)
        self.row_major |= {
            type_
            for name, type_ in zip(composite.operands.named, composite.types, strict=True)
            if name in implementation.row_major
        }
        operands, attributes = composite.operands, composite.attributes
        kernel, number = kernels()[composite.name], len(self.symbols)
        symbol = lowered(kernel, implementation, operands, attributes, self.target, self.module, number)
        return symbol, Decision(composite.name, implementation.name, reasons, 1, types)


def lowered(
    kernel: Kernel,
    implementation: Implementation,
    operands: Operands,
    attributes: Mapping[str, Any],
    target: Target,
    module: ir.Module,
    number: int,
) -> str:
    """Adds the implementation for these operands to the module, as a function. Returns its symbol; `number` makes it unique."""
    try:
        text = lower_implementation(implementation, operands, attributes, target)
    except Exception as problem:
        shapes = ", ".join(f"{spec.dtype.name}{list(spec.shape)}" for spec in operands)
        raise LegalizeError(
            f"{implementation.name} of fxhlo.{kernel.name} says it supports {shapes} on {target} and failed: {problem}",
            next_step="its supports() must give a reason for these operands; report this as a bug of fxhlo",
        ) from problem
    return adopt(text, module, f"{implementation.name}_{kernel.name}_{number}")


def _is_uniform(kernel: Kernel | None, implementation: Implementation | None) -> bool:
    if implementation is not None:
        return implementation.uniform
    return kernel is not None and kernel.uniform


def _with_counts(module: ir.Module) -> list[tuple[ir.Operation, int]]:
    """The composites of the module, and how often each runs: one in a layer's function for each layer; in a reference it counts once,
    and in a loop's body once for each of its turns where these are counted."""
    times = runs(module)
    return [
        (operation, turns(operation) * (times.get(ir.SymbolTable.get_symbol_name(function.operation).value) or 1))
        for function in module.body.operations
        for operation in composites(function.operation)
    ]


def _custom_calls(module: ir.Module) -> tuple[str, ...]:
    calls = [inner for inner in operations(module.operation) if inner.name == "stablehlo.custom_call"]
    return tuple(sorted({ir.StringAttr(call.attributes["call_target_name"]).value for call in calls}))
