"""A module that XLA compiled, for a device that need not be here: what it takes, and its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..explain import explained
from ..targets import Target


@dataclass(frozen=True)
class Memory:
    """Bytes that one call of an executable takes: `aliased` of the outputs are arguments updated in place."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int


class Compiled:
    """A compiled module; after `compile_ahead` for a device that this machine need not have."""

    def __init__(self, raw: Any, target: Target) -> None:
        self.raw = raw
        self.target = target

    def serialize(self) -> bytes:
        """Bytes for `deserialize` on a machine with an equal `fingerprint`."""
        with explained("the executable could not be serialized"):
            return self.raw.serialize()

    @cached_property
    def memory(self) -> Memory:
        stats = self.raw.get_compiled_memory_stats()
        return Memory(
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.alias_size_in_bytes,
            stats.temp_size_in_bytes,
            stats.generated_code_size_in_bytes or getattr(self.raw, "size_of_generated_code_in_bytes", int)(),
        )

    @cached_property
    def costs(self) -> Mapping[str, float]:
        """The compiler's own cost analysis by key, such as "flops" and "bytes accessed"; empty where it has none.

        It counts the body of a loop once, and of a Pallas kernel only what its `CostEstimate` says.
        """
        try:
            found = self.raw.cost_analysis()
        except RuntimeError:
            return {}
        return dict(found[0] if isinstance(found, list) else found or {})

    @property
    def text(self) -> str:
        """The optimized HLO."""
        return "\n".join(module.to_string() for module in self.raw.hlo_modules())
