"""A module that XLA compiled: `Compiled` for any device, `Loaded` onto one, which runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import DTYPES
from ..errors import ExecutionError, FxhloError, ShapeError
from ..explain import explained, first_lines
from ..signature import Result
from ..targets import Target
from .client import Buffer, handler

if TYPE_CHECKING:
    from .devices import Device


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


class Loaded(Compiled):
    """An executable on a device, or on all of a mesh. `execute` is the serving path: no check, no wait."""

    def __init__(self, raw: Any, device: Device) -> None:
        super().__init__(raw, device.target)
        self.device = device
        self._handlers: list[Any] | None = None

    def execute(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Runs on device arrays, one per argument of `main`; returns device arrays that may still be computing.

        About 0.1 ms for 350 arguments and 40 results. PJRT checks neither dtypes nor transposed shapes: `Executable`
        does. Raises ShapeError where a buffer was consumed by an earlier call, ExecutionError where PJRT refuses.
        """
        try:
            results = self.raw.execute_sharded(buffers)
            if self._handlers is None:
                return self._first(results)
            return results.consume_with_handlers(self._handlers)
        except (RuntimeError, TypeError, ValueError) as problem:
            raise refused(problem, buffers) from problem

    def expect(self, results: Sequence[Result]) -> None:
        """Tells how the results of `main` lie on the mesh; needed before the first call where it has several devices."""
        self._handlers = [
            handler(result.shape, np.dtype(DTYPES[result.dtype].numpy), self.device.lying(result.sharding))
            for result in results
        ]

    def _first(self, results: Any) -> list[Buffer]:
        """The first call: PJRT's own, slower way, from whose arrays later calls know the results' types."""
        arrays = [one for (one,) in results.disassemble_into_single_device_arrays()]
        self._handlers = [handler(array.shape, array.dtype, self.device.sharding) for array in arrays]
        return arrays


def refused(problem: Exception, buffers: Sequence[Any]) -> FxhloError:
    """The error for a failed call; the reason is looked up only now."""
    for index, buffer in enumerate(buffers):
        if not isinstance(buffer, Buffer):
            what = f"argument {index} is {type(buffer).__name__}, not a device array"
            return ShapeError(what, next_step="place it with Device.put first")
        if buffer.is_deleted():
            what = f"argument {index} ({buffer.dtype}{list(buffer.shape)})"
            return ShapeError(
                f"{what} was consumed by an earlier call, as donated state is",
                next_step="pass the new state from that call's results",
            )
    text = first_lines(problem)
    if "INVALID_ARGUMENT: fxhlo_" in text:  # a native kernel's door (native/door.h)
        return ExecutionError(f"the program failed: {text}", next_step="correct the value that the message names")
    next_step = "call the executable with the same arguments: it checks them, which this path leaves out"
    return ExecutionError(f"the program failed: {text}", next_step=next_step)
