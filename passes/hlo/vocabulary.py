"""Sampling from logits that are split over the devices by their columns, as a head that is split by the vocabulary leaves them.

Comes in: the composites of a step's sampling. Goes out: one region in which the devices agree on what a step needs. Where every row is
greedy, unprocessed and shows no log-probabilities, each device names its best token, and 8 bytes a row are gathered; else the logits are,
and every device samples from all of them. Both give the tokens of one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...kernels.partition import along
from ...kernels.spec import Operands, TensorSpec
from ...runtime.core.sharding import REPLICATED
from ..mlir import func, ir, stablehlo
from .composite import Composite
from .shardy import Collectives, Value, manual

Symbol = Callable[[Composite, Operands], str | None]
"""The function that serves a composite with these operands; None where the target has none but its reference, for other operands."""
Helper = Callable[[str, Operands], str]
"""The function of kernels/sample/xla_split.py of that name, for these operands."""


@dataclass(frozen=True)
class Sampling:
    """The composites of a step: `logprobs` shows the logits that `process` gets, and `sample` draws from what it makes of them."""

    process: Composite
    sample: Composite
    logprobs: Composite

    @classmethod
    def beginning(cls, process: Composite) -> Sampling | None:
        """The sampling that begins with this `fxhlo.process_logits`; None where it has another form (processed log-probabilities)."""
        sample = _only_user(process.operation.results[0], "fxhlo.sample")
        if sample is None:
            return None
        tokens, logits = sample.operation.results[0], process.operation.operands[0]
        for use in tokens.uses:
            shown = _composite(use.owner.operation, "fxhlo.logprobs")
            if shown is not None and shown.operation.operands[0] == logits and not _used_before(tokens, sample, shown):
                return cls(process, sample, shown)
        return None

    def parts(
        self, collectives: Collectives, axes: tuple[str, ...], symbol: Symbol, helper: Helper
    ) -> list[Value] | None:
        """The region's results at the insertion point: the tokens, and what `logprobs` gives. None where the target's `sample` takes no part
        of a row. axes: that split the logits' columns."""
        logits, mesh = self.process.operation.operands[0], collectives.mesh
        shape = along(2, 1, axes).shard(ir.RankedTensorType(logits.type).shape, mesh)
        processed = self.sample.operands.named["logits"].dtype
        others = {name: spec for name, spec in self.sample.operands.named.items() if name != "logits"}
        local = Operands.of(("logits", *others), (TensorSpec(shape, processed), *others.values()))
        part = symbol(self.sample, local)
        if part is None:
            return None
        body = _Body(self, collectives, axes, local, part, symbol, helper)
        operands = [(logits, along(2, 1, axes))]
        operands += [(value, REPLICATED) for value in body.given]
        results = [(value.type, REPLICATED) for one in (self.sample, self.logprobs) for value in one.operation.results]
        return manual(operands, results, mesh, body)


class _Body:
    """What each device does with its columns. given: the other operands of the three composites."""

    def __init__(
        self,
        of: Sampling,
        collectives: Collectives,
        axes: tuple[str, ...],
        local: Operands,
        part: str,
        symbol: Symbol,
        helper: Helper,
    ) -> None:
        self.of, self.axes, self.local, self.part, self.helper = of, axes, local, part, helper
        self.collectives = collectives
        self.symbols = [symbol(one, one.operands) for one in (of.process, of.sample, of.logprobs)]
        self.given = [
            value
            for one, skipped in ((of.process, 1), (of.sample, 1), (of.logprobs, 2))
            for value in list(one.operation.operands)[skipped:]
        ]

    def __call__(self, values: list[Value]) -> list[Value]:
        logits, *rest = values
        first, second = len(self.of.process.operands) - 1, len(self.of.sample.operands) - 1
        process, sample, shown = rest[:first], rest[first : first + second], rest[first + second :]
        named = {
            **dict(zip(list(self.of.process.operands.named)[1:], process, strict=True)),
            **dict(zip(list(self.of.sample.operands.named)[1:], sample, strict=True)),
            **dict(zip(list(self.of.logprobs.operands.named)[2:], shown, strict=True)),
        }
        specs = {**self.of.process.operands.named, **self.of.sample.operands.named, **self.of.logprobs.operands.named}
        asked = [named[name] for name in ("flags", "temperature", "enabled")]
        bit = ir.RankedTensorType.get([], ir.IntegerType.get_signless(1))
        needed = self._helper(
            "whole_needed", asked, {name: specs[name] for name in ("flags", "temperature", "enabled")}, bit
        )
        types = [value.type for one in (self.of.sample, self.of.logprobs) for value in one.operation.results]
        chosen = stablehlo.IfOp(types, needed)
        with ir.InsertionPoint(chosen.true_branch.blocks.append()):
            stablehlo.ReturnOp(self._whole(logits, process, sample, shown, types))
        with ir.InsertionPoint(chosen.false_branch.blocks.append()):
            stablehlo.ReturnOp(self._greedy(logits, sample, types))
        return list(chosen.results)

    def _whole(
        self, logits: Value, process: list[Value], sample: list[Value], shown: list[Value], types: list[ir.Type]
    ) -> list[Value]:
        """All logits on every device, and the composites as on one."""
        whole = self.collectives.gather(logits, 1, self.axes)
        made = _call(self.symbols[0], [whole, *process], [self.of.process.operation.results[0].type])
        tokens = _call(self.symbols[1], [made[0], *sample], types[:1])
        return [*tokens, *_call(self.symbols[2], [whole, tokens[0], *shown], types[1:])]

    def _greedy(self, logits: Value, sample: list[Value], types: list[ir.Type]) -> list[Value]:
        """The best of the devices' best tokens; zeros for log-probabilities."""
        spec = self.local.named["logits"]
        wide = ir.RankedTensorType.get(
            list(spec.shape), ir.RankedTensorType(self.of.process.operation.results[0].type).element_type
        )
        exact = logits if logits.type == wide else stablehlo.convert(wide, logits)
        (tokens,) = _call(self.part, [exact, *sample], types[:1])
        rows, width = spec.shape[0], self.of.process.operands.named["logits"].shape[1]
        start = self.collectives.start(width, self.axes)
        integer = ir.IntegerType.get_signless(32)
        indices = TensorSpec((rows,), self.of.logprobs.operands.named["tokens"].dtype)
        named = {"logits": spec, "tokens": indices, "start": TensorSpec((), indices.dtype)}
        one = self._helper("candidate", [exact, tokens, start], named, ir.RankedTensorType.get([1, 2, rows], integer))
        every = self.collectives.gather(one, 0, self.axes)
        count = ir.RankedTensorType(every.type).shape[0]
        named = {"candidates": TensorSpec((count, 2, rows), indices.dtype)}
        best = self._helper("winner", [every], named, types[0])
        return [best, *(stablehlo.constant(_zeros(type_)) for type_ in types[1:])]

    def _helper(self, name: str, values: list[Value], specs: Mapping[str, TensorSpec], type_: ir.Type) -> Value:
        return _call(self.helper(name, Operands.of(specs, specs.values())), values, [type_])[0]


def _call(symbol: str | None, values: list[Value], types: list[ir.Type]) -> list[Value]:
    assert symbol is not None
    return list(func.CallOp(types, ir.FlatSymbolRefAttr.get(symbol), values).results)


def _zeros(type_: ir.Type) -> ir.Attribute:
    element = ir.RankedTensorType(type_).element_type
    zero = ir.FloatAttr.get(element, 0.0) if isinstance(element, ir.FloatType) else ir.IntegerAttr.get(element, 0)
    return ir.DenseElementsAttr.get_splat(type_, zero)


def _composite(operation: ir.Operation, name: str) -> Composite | None:
    if operation.name != "stablehlo.composite":
        return None
    found = Composite.of(operation)
    return found if found.name == name else None


def _only_user(value: Value, name: str) -> Composite | None:
    """The composite of that name, where it alone reads the value, as its first operand."""
    users = [use.owner.operation for use in value.uses]
    found = _composite(users[0], name) if len(users) == 1 else None
    return found if found is not None and found.operation.operands[0] == value else None


def _used_before(value: Value, first: Composite, last: Composite) -> bool:
    """Whether an op between the two reads the value."""
    between, parent = False, first.operation.parent
    assert parent is not None
    for view in parent.regions[0].blocks[0].operations:
        if view.operation == last.operation:
            return False
        if between and any(operand == value for operand in view.operation.operands):
            return True
        between = between or view.operation == first.operation
    return True
