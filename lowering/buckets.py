"""Buckets: the modules of one Program for the sizes of each program of an engine, legalized. What differs between them is numbers.

Comes in: a Program, a target, and sizes, one bucket at a time. Goes out: an Entry for each. Guaranteed: the same bytes as those of
`Entry.of(emit(program, sizes, references=False), legalized_to_run)`. One bucket is emitted so; for others that is done once, at stand-ins for
their sizes (emit/extents.py), and the result is changed into each (emit/template.py) where all that the sizes decided is decided alike. A template is
taken after it gave the very bytes of a bucket that was emitted. There is none where the target has no implementation of a composite, or one whose ops
depend on sizes, as on TPUs: then each bucket is emitted by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

from jax.errors import JaxRuntimeError

from ..kernels.spec import Operands, TensorSpec
from ..passes import mlir
from ..passes.hlo.legalize import Decision, Legalized, OnlyDeclared, SizesMatter, Taken, in_place
from ..passes.program import Program
from ..runtime.core.errors import FxhloError
from ..runtime.core.targets import Target
from .bundling import Entry
from .compiling import legalized_to_run
from .emit.dims import Binding
from .emit.emit import emit, emit_tracked
from .emit.extents import Tracked, Trail, Unlike
from .emit.signature import signature_of
from .emit.template import Template, replaced

Pattern = tuple[tuple[str, ...], ...]
"""The dimensions whose sizes vary, those that have the same size together."""


class Buckets:
    """Entries of `program` for `target`. shared: the sizes that all have."""

    def __init__(self, program: Program, target: Target, shared: Mapping[str, int]) -> None:
        self._program = program
        self._target = target
        self._shared = dict(shared)
        self._templates: dict[Pattern, _Template | None] = {}
        self.emitted: list[tuple[Binding, bytes]] = []
        """What was emitted by itself: sizes, and a digest of the bytes."""

    def entry(self, sizes: Mapping[str, int]) -> Entry:
        """The bucket's entry. Raises what `emit` and legalization raise."""
        binding = Binding(self._program, {**self._shared, **sizes})
        for pattern in self._patterns(binding, sizes) if self.emitted else ():
            template = self._template(pattern, binding)
            found = None if template is None else template.entry(binding)
            if template is not None and found is not None:
                if template.checked:
                    return found
                alone = self._alone(binding)
                template.checked = _digest(found) == _digest(alone)
                if not template.checked:
                    self._templates[pattern] = None
                return alone
        return self._alone(binding)

    def _alone(self, binding: Binding) -> Entry:
        module = emit(self._program, binding.sizes, references=False)
        entry = Entry.of(replace(module, target=str(self._target)), legalized_to_run)
        self.emitted.append((binding, _digest(entry)))
        return entry

    def _patterns(self, binding: Binding, sizes: Mapping[str, int]) -> list[Pattern]:
        """Those that hold for these sizes: that in which each varies on its own, and that of the sizes that are equal or 1."""
        together: dict[int, list[str]] = {}
        for name in sizes:
            if binding.sizes[name] > 1:
                together.setdefault(binding.sizes[name], []).append(name)
        equal = tuple(tuple(names) for names in together.values())
        apart = tuple((name,) for name in sizes if binding.sizes[name] > 1)
        return [one for one in dict.fromkeys((apart, equal)) if one]

    def _template(self, pattern: Pattern, binding: Binding) -> _Template | None:
        if pattern not in self._templates:
            self._templates[pattern] = self._made(pattern, binding)
        return self._templates[pattern]

    def _made(self, pattern: Pattern, binding: Binding) -> _Template | None:
        """A template, compared with what was emitted and is like it; None where there is none."""
        try:
            template = _Template(self._program, self._target, binding.sizes, pattern)
            for one, digest in self.emitted:
                entry = template.entry(one)
                if entry is not None and _digest(entry) != digest:
                    return None
                template.checked |= entry is not None
        except (Unlike, SizesMatter, OnlyDeclared, FxhloError):  # emitted by itself, a module says what is wrong
            return None
        return template


def _digest(entry: Entry) -> bytes:
    return sha256(entry.legal.bytecode).digest()


class _Template:
    """The legalized module for any sizes of a pattern's dimensions."""

    def __init__(self, program: Program, target: Target, sizes: Mapping[str, int], pattern: Pattern) -> None:
        """sizes: of the other dimensions. Raises Unlike, SizesMatter, OnlyDeclared, FxhloError."""
        self.checked = False
        """Whether it gave the bytes of an entry that was emitted by itself."""
        self._program, self._target, self._pattern = program, target, pattern
        varying = {name for names in pattern for name in names}
        self._fixed = {name: size for name, size in sizes.items() if name not in varying}
        self._trail = Trail()
        module = emit_tracked(program, Tracked(program, sizes, pattern, self._trail))
        copied = mlir.parse(mlir.bytecode(module.module), mlir.context())
        self._made = in_place(copied, target, uniform=True)
        if self._made.pinned:
            raise Unlike("layouts are pinned by types")
        self._template = Template(copied, self._trail.origins)

    def entry(self, binding: Binding) -> Entry | None:
        """The entry for these sizes; None where they are not like the stand-ins."""
        sizes = binding.sizes
        if any(sizes[name] != size for name, size in self._fixed.items()):
            return None
        if any(sizes[name] != sizes[names[0]] or sizes[name] < 2 for names in self._pattern for name in names):
            return None  # sizes of 1 broadcast
        numbers = self._trail.numbers(binding)
        if numbers is None:
            return None
        legal = self._legalized(numbers)
        if legal is None:
            return None
        signature = signature_of(self._program, binding)
        return Entry(signature, dict(binding.sizes), str(self._target), legal, legal.bytecode)

    def _legalized(self, numbers: Mapping[int, int]) -> Legalized | None:
        """None where something else is taken for a composite of these sizes, or the template is no module at them."""
        taken = self._made.taken
        decisions = [one for one in (_decided(one, numbers, self._target) for one in taken) if one is not None]
        if len(decisions) < len(taken) or _equal(decisions, taken):
            return None
        self._template.at(numbers)
        try:
            return replace(self._made.legalized, decisions=tuple(decisions))
        except (ValueError, mlir.ir.MLIRError, JaxRuntimeError):  # a number that was lost on the way: it is no module
            return None


def _decided(taken: Taken, numbers: Mapping[int, int], target: Target) -> Decision | None:
    """The decision for other sizes; None where another implementation is taken for them."""
    assert taken.kernel is not None and taken.operands is not None and taken.attributes is not None
    specs = [TensorSpec(tuple(numbers.get(size, size) for size in one.shape), one.dtype) for one in taken.operands]
    attributes = {name: _number(value, numbers) for name, value in taken.attributes.items()}
    implementation, reasons = taken.kernel.choice(Operands.of(taken.operands.named, specs), attributes, target)
    if implementation is not taken.implementation:
        return None
    return replace(taken.decision, reasons=reasons, operands=replaced(taken.decision.operands, numbers))


def _number(value: object, numbers: Mapping[int, int]) -> object:
    return numbers.get(value, value) if type(value) is int else value


def _equal(decisions: Sequence[Decision], taken: Sequence[Taken]) -> bool:
    """Whether composites that were different are equal now, so that one function would serve them."""
    keys = {(one.kernel, one.operands, str(its.attributes)) for one, its in zip(decisions, taken, strict=True)}
    return len(keys) < len(decisions)
