"""One device's share of a composite: its operands, as the kernel takes them, by the kernel's partition rule.

Comes in: a composite's operands, whole or in pieces, and the rule. Goes out: shapes of one device, and inside of a region its values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...kernels.partition import Partition, groups_of_a_device
from ...kernels.spec import Operands, TensorSpec
from ...runtime.core.errors import SignatureError, UnsupportedError
from ...runtime.core.sharding import REPLICATED
from .composite import Composite
from .plan import NEXT_STEP
from .propagate import shape_of
from .shardy import Collectives, Value


@dataclass(frozen=True)
class Share:
    """named: the operands, by the schema's names, as they enter a region."""

    composite: Composite
    named: Mapping[str, Value]
    rule: Partition
    collectives: Collectives

    def operands(self) -> Operands:
        """Of one device. Raises UnsupportedError where one does not divide."""
        specs = []
        for name, value in self.named.items():
            sharding = self.rule.operands.get(name, REPLICATED)
            try:
                shape = sharding.shard(shape_of(value), self.collectives.mesh)
            except SignatureError as problem:
                what = f"{self.composite.name}, {name}"
                raise UnsupportedError(f"{what}: {problem.message}", next_step=NEXT_STEP) from problem
            if name in self.rule.shared:
                shape = (shape[0], self._groups(name), *shape[2:])
            specs.append(TensorSpec(shape, self.composite.operands.named[name].dtype))
        return Operands.of(self.named, specs)

    def value(self, name: str, value: Value) -> Value:
        """One device's operand, inside of a region, as the kernel takes it."""
        rule = self.rule
        if name in rule.once:
            return self.collectives.once(value, rule.summed)
        if name in rule.counted:
            other = rule.counted[name]
            axes = rule.operands[other].dimensions[0]
            return self.collectives.counted(value, shape_of(self.named[other])[0], axes)
        if name in rule.shared:
            return self.collectives.of_heads(value, self._groups(name), *self._heads(name))
        return value

    def _heads(self, name: str) -> tuple[int, tuple[str, ...]]:
        """How many heads share the groups of an operand, and the axes that split them."""
        other = self.rule.shared[name]
        return shape_of(self.named[other])[1], self.rule.operands[other].dimensions[1]

    def _groups(self, name: str) -> int:
        """How many groups of an operand a device's heads read. Raises UnsupportedError, as plans do before."""
        heads, axes = self._heads(name)
        devices = math.prod(self.collectives.mesh.size(axis) for axis in axes)
        found = groups_of_a_device(shape_of(self.named[name])[1], heads, devices)
        if found is None:
            what = f"{self.composite.name}, {name}"
            raise UnsupportedError(f"{what}: no device has whole groups of heads", next_step=NEXT_STEP)
        return found
