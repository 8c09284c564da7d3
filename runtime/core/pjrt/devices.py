"""One device, or all devices of a mesh as one: how arrays and modules get onto it; an executable that runs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from .. import seal
from ..dtypes import DTYPES
from ..errors import CompileError, ExecutionError, FxhloError, ShapeError
from ..explain import explained, first_lines
from ..mesh import ONE_DEVICE, Mesh
from ..sharding import REPLICATED, Sharding
from ..signature import Result
from ..targets import Options, Target
from .client import (
    ALIAS,
    COPY,
    UNTIL_SENT,
    Buffer,
    DeviceList,
    SingleDeviceSharding,
    abstract,
    compile_options,
    device_put,
    handler,
)
from .compiled import Compiled


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's own memory: what programs may use, and what is in use."""

    limit: int
    used: int


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


class Device:
    """One device of a target, or all devices of a mesh as one, and how arrays get onto it. Make it with `device()`.

    raws: in the mesh's order, those of other hosts among them. numbers: of those that are here, whose part of an array this process places.
    raw: the first of them.
    sharding: jax's form of an array that every device has all of.
    """

    def __init__(self, target: Target, raws: Sequence[Any], mesh: Mesh = ONE_DEVICE) -> None:
        self.target = target
        self.mesh = mesh
        self.raws = list(raws)
        self.client = self.raws[0].client
        here = self.client.process_index()
        self.numbers = [number for number, raw in enumerate(self.raws) if raw.process_index == here]
        self._here = [self.raws[number] for number in self.numbers]
        self.raw = self._here[0]
        self.sharding = self.lying(REPLICATED)
        self._zeros: dict[tuple[tuple[int, ...], np.dtype], Loaded] = {}
        self._one_by_one = [Device(target, [raw]) for raw in self._here] if len(self.raws) > 1 else []

    @lru_cache(maxsize=256)  # noqa: B019 - devices live as long as the process
    def lying(self, sharding: Sharding) -> Any:
        """jax's form of a sharding on these devices."""
        if len(self.raws) == 1:
            return SingleDeviceSharding(self.raw)
        names = [name for name, _ in self.mesh.axes]
        grid = jax.sharding.Mesh(np.array(self.raws).reshape([size for _, size in self.mesh.axes]), names)
        return jax.sharding.NamedSharding(grid, jax.sharding.PartitionSpec(*sharding.dimensions))

    def put(self, array: np.ndarray, sharding: Sharding = REPLICATED) -> Buffer:
        """A copy on the device; `array` may be overwritten as soon as this returns. About 6 us for small arrays."""
        return self._place(array, COPY, sharding)

    def put_shared(self, array: np.ndarray, sharding: Sharding = REPLICATED) -> Buffer:
        """`array` on the device, sharing its memory where the device is the host and it is aligned to 64 bytes.

        The array must not change as long as the buffer lives (the buffer keeps it alive); on another device, until the transfer
        is done (`block_until_ready`). For weights.
        """
        return self._place(array, ALIAS if self.is_host else UNTIL_SENT, sharding)

    def received(self, buffer: Buffer, sharding: Sharding = REPLICATED) -> Buffer:
        """A copy of what lies on other devices, on these as `sharding` says; nothing is waited for."""
        return jax.device_put(buffer, self.lying(sharding))

    def whole(self, buffer: Buffer) -> np.ndarray:
        """The values of an array of these devices, once they are there; every host of several that have parts of it calls this. Raises
        ExecutionError."""
        if buffer.is_fully_addressable or buffer.is_fully_replicated:
            return get(buffer)
        from jax.experimental.multihost_utils import process_allgather

        with explained("an array that is on several hosts could not be read", ExecutionError):
            return np.asarray(process_allgather(buffer, tiled=True))

    def put_parts(self, shape: Sequence[int], part: Callable[[int], np.ndarray], sharding: Sharding) -> Buffer:
        """An array of `shape` on a mesh, of what each device here gets: `part` makes that for the device of a number, and the host holds one
        at a time. The arrays that it gives may be overwritten once this returns."""
        parts = []
        for number, one in zip(self.numbers, self._one_by_one, strict=True):
            parts.append(one.put(part(number)))
            parts[-1].block_until_ready()
        return jax.make_array_from_single_device_arrays(tuple(shape), self.lying(sharding), parts)

    @property
    def is_host(self) -> bool:
        """Whether the device computes in this machine's own memory."""
        return self.target.family == "cpu"

    @property
    def memory(self) -> DeviceMemory | None:
        """Bytes of the device's own memory, as PJRT counts them or as they are known of the target; None for the host, and where nobody knows."""
        if self.is_host:
            return None
        try:
            stats = self.raw.memory_stats() or {}
        except RuntimeError:  # a plugin that does not count
            stats = {}
        limit = stats.get("bytes_limit") or self.target.memory
        return None if limit is None else DeviceMemory(limit, stats.get("bytes_in_use", 0))

    def holds(self, buffer: Buffer, sharding: Sharding = REPLICATED) -> bool:
        """Whether the buffer lies on this device, or as `sharding` says on these devices."""
        if len(self.raws) == 1:
            return buffer.devices() == {self.raw}
        return buffer.sharding.is_equivalent_to(self.lying(sharding), buffer.ndim)

    def zeros(self, shape: Sequence[int], dtype: np.dtype | str, sharding: Sharding = REPLICATED) -> Buffer:
        """Zeros allocated on the device: nothing is made on the host or moved. For KV caches."""
        if self._one_by_one:
            local = sharding.shard(shape, self.mesh)
            parts = [one.zeros(local, dtype) for one in self._one_by_one]
            return jax.make_array_from_single_device_arrays(tuple(shape), self.lying(sharding), parts)
        key = (tuple(shape), np.dtype(dtype))
        if key not in self._zeros:
            element = DTYPES[key[1].name].stablehlo
            zero = f'"0x{bytes(key[1].itemsize).hex()}"'  # bits: not every dtype has a literal for 0
            full = f"tensor<{''.join(f'{size}x' for size in key[0])}{element}>"
            module = (
                f"module @zeros {{ func.func public @main() -> {full} {{\n"
                f"%0 = stablehlo.constant dense<{zero}> : tensor<{element}>\n"
                f"%1 = stablehlo.broadcast_in_dim %0, dims = [] : (tensor<{element}>) -> {full}\n"
                f"return %1 : {full} }} }}"
            )
            self._zeros[key] = self._compile(module)  # not a model's program, so the seal allows it
        return self._zeros[key].execute([])[0]

    def compile(self, module: bytes | str, options: Options | None = None) -> Loaded:
        """Raises CompileError; the module that failed is left in the temporary folder, named by the error."""
        seal.check("compiling a module")
        return self._compile(module, options)

    def _compile(self, module: bytes | str, options: Options | None = None) -> Loaded:
        with explained("XLA refused the module", CompileError, module):
            raw = self.client.compile_and_load(module, DeviceList(tuple(self.raws)), self._options(options))
        return Loaded(raw, self)

    def deserialize(self, data: bytes, options: Options | None = None) -> Loaded:
        """Raises CompileError where `data` does not fit this process. Only for trusted bytes: they hold machine code."""
        with explained("the serialized executable does not load here", CompileError):
            raw = self.client.deserialize_executable(data, DeviceList(tuple(self.raws)), self._options(options))
        return Loaded(raw, self)

    def _options(self, options: Options | None) -> Any:
        return compile_options(self.target, options, self.raws)

    def _parts(self, array: np.ndarray, sharding: Sharding) -> list[np.ndarray]:
        """What each device that is here gets of an array that is split."""
        places = [sharding.index(array.shape, self.mesh, number) for number in self.numbers]
        return [np.ascontiguousarray(array[place]) for place in places]

    def _place(self, array: np.ndarray, semantics: Any, sharding: Sharding) -> Buffer:
        if sharding.dimensions:
            lying, parts = self.lying(sharding), self._parts(array, sharding)
        else:
            whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
            lying, parts = self.sharding, [whole] * len(self._here)
        with explained(f"{array.dtype}{list(array.shape)} could not be placed on {self.raw}", ExecutionError):
            return device_put(
                abstract(array.shape, array.dtype),
                lying,
                parts,
                self._here,
                committed=True,
                host_buffer_semantics=semantics,
                enable_x64=True,  # 64-bit types stay what they are, whatever jax_enable_x64 says
            )


def get(buffer: Buffer) -> np.ndarray:
    """The values, once they are there; read-only, and on the CPU the device's own memory. Raises ExecutionError."""
    try:
        return np.asarray(buffer)
    except RuntimeError as problem:
        raise refused(problem, (buffer,)) from problem


@dataclass(frozen=True)
class HostCopy:
    """A buffer's values in the host's memory, a part for each device of this process, wherever the others lie."""

    shape: tuple[int, ...]
    sharding: Any
    parts: tuple[tuple[Any, np.ndarray], ...]
    """(device, the values that it has)."""

    @classmethod
    def of(cls, buffer: Buffer) -> HostCopy:
        """Waits for the values; the buffer may be donated afterwards."""
        parts = tuple((one.device, np.array(one.data)) for one in buffer.addressable_shards)
        return cls(buffer.shape, buffer.sharding, parts)

    def placed(self) -> Buffer:
        """A buffer of these values, which lies as the first one did."""
        parts = [jax.device_put(values, device, may_alias=False) for device, values in self.parts]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, parts)


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
