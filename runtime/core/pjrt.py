"""The one file that touches jaxlib's PJRT client: compile, load, execute, and move arrays.

Comes in: StableHLO (text, bytecode or a portable artifact), serialized executables, numpy arrays. Goes out: `Loaded`
executables and device arrays (`jax.Array`). Guaranteed: what PJRT raises leaves as an FxhloError; no plugin is
started for a device that this machine does not have; nothing waits for a result except `get`.

A TPU's program is compiled on any machine by libtpu alone (`compile_ahead`, `build`), several processes at a time.

Donation: an argument that the module marks with `tf.aliasing_output` is consumed by the call: its memory becomes
the result's. If a numpy or DLPack view of it is alive, PJRT copies it first, so views never change under their
owner; a serving loop keeps no views of its state.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from . import processes, seal, topology
from .dtypes import DTYPES
from .errors import CompileError, ExecutionError, FxhloError, ShapeError, UnsupportedError
from .explain import explained, first_lines
from .mesh import ONE_DEVICE, Mesh
from .plugins import has_cuda_plugin, limited, reserve_cpu_devices, settle
from .sharding import REPLICATED, Sharding
from .signature import Result
from .targets import Options, Target
from .versions import misfit

try:
    import jax
    import jaxlib
    from jaxlib import _jax

    CompileOptions, DeviceList = _jax.CompileOptions, _jax.DeviceList
    COPY = _jax.HostBufferSemantics.IMMUTABLE_ONLY_DURING_CALL
    ALIAS = _jax.HostBufferSemantics.ZERO_COPY
    UNTIL_SENT = _jax.HostBufferSemantics.IMMUTABLE_UNTIL_TRANSFER_COMPLETES
    _device_put, _result_handler = _jax.batched_device_put, _jax.array_result_handler
    ShapedArray, SingleDeviceSharding = jax.core.ShapedArray, jax.sharding.SingleDeviceSharding
    Buffer = jax.Array
    # jaxlib 0.11 dropped the option with the checks that it skipped. The docstring is the binding's signature.
    UNCHECKED = {"_skip_checks": True} if "_skip_checks" in (_result_handler.__doc__ or "") else {}
except (ImportError, AttributeError) as problem:
    raise misfit("PJRT client", problem) from problem


@dataclass(frozen=True)
class Memory:
    """Bytes that one call of an executable takes: `aliased` of the outputs are arguments updated in place."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device's own memory: what programs may use, and what is in use."""

    limit: int
    used: int


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
            raise _refused(problem, buffers) from problem

    def expect(self, results: Sequence[Result]) -> None:
        """Tells how the results of `main` lie on the mesh; needed before the first call where it has several devices."""
        self._handlers = [
            _handler(result.shape, np.dtype(DTYPES[result.dtype].numpy), self.device.lying(result.sharding))
            for result in results
        ]

    def _first(self, results: Any) -> list[Buffer]:
        """The first call: PJRT's own, slower way, from whose arrays later calls know the results' types."""
        arrays = [one for (one,) in results.disassemble_into_single_device_arrays()]
        self._handlers = [_handler(array.shape, array.dtype, self.device.sharding) for array in arrays]
        return arrays


class Device:
    """One device of a target, or all devices of a mesh as one, and how arrays get onto it. Make it with `device()`.

    raws: in the mesh's order, those of other hosts among them. raw: the first that is here, and this process places what is here.
    sharding: jax's form of an array that every device has all of.
    """

    def __init__(self, target: Target, raws: Sequence[Any], mesh: Mesh = ONE_DEVICE) -> None:
        self.target = target
        self.mesh = mesh
        self.raws = list(raws)
        self.client = self.raws[0].client
        here = self.client.process_index()
        self._numbers = [number for number, raw in enumerate(self.raws) if raw.process_index == here]
        self._here = [self.raws[number] for number in self._numbers]
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

    def received(self, buffer: Buffer) -> Buffer:
        """A copy of what lies on other devices, whole on each of these; nothing is waited for."""
        return jax.device_put(buffer, self.sharding)

    def put_parts(self, shape: Sequence[int], part: Callable[[int], np.ndarray], sharding: Sharding) -> Buffer:
        """An array of `shape` on a mesh, of what each device gets: `part` makes that for the device of a number, and the host holds one at
        a time. The arrays that it gives may be overwritten once this returns."""
        parts = []
        for number, one in enumerate(self._one_by_one):
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
        return _compile_options(self.target, options, self.raws)

    def _parts(self, array: np.ndarray, sharding: Sharding) -> list[np.ndarray]:
        """What each device that is here gets of an array that is split."""
        places = [sharding.index(array.shape, self.mesh, number) for number in self._numbers]
        return [np.ascontiguousarray(array[place]) for place in places]

    def _place(self, array: np.ndarray, semantics: Any, sharding: Sharding) -> Buffer:
        if sharding.dimensions:
            lying, parts = self.lying(sharding), self._parts(array, sharding)
        else:
            whole = array if array.flags.c_contiguous else np.ascontiguousarray(array)
            lying, parts = self.sharding, [whole] * len(self._here)
        with explained(f"{array.dtype}{list(array.shape)} could not be placed on {self.raw}", ExecutionError):
            return _device_put(
                _abstract(array.shape, array.dtype),
                lying,
                parts,
                self._here,
                committed=True,
                host_buffer_semantics=semantics,
                enable_x64=True,  # 64-bit types stay what they are, whatever jax_enable_x64 says
            )


def device(target: Target | str = "cpu", index: int = 0, mesh: Mesh = ONE_DEVICE) -> Device:
    """The device `index` of a target, or as many from there on as the mesh has. Raises UnsupportedError where this process has fewer.

    Where processes of several hosts were joined (processes.py), a mesh has equally many devices of each.
    """
    return _device(Target.parse(target), index + mesh.first, mesh if mesh.devices > 1 else ONE_DEVICE)


@cache
def _device(target: Target, index: int, mesh: Mesh) -> Device:
    if target.family == "cpu":
        reserve_cpu_devices(index + mesh.devices // processes.count())
    if target.family == "cpu" and not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")  # else the first look at a device starts every plugin there is
    if target.family == "cuda" and not has_cuda_plugin():
        raise UnsupportedError(
            f"jaxlib {jaxlib.__version__} has no CUDA plugin here, so nothing is compiled for {target} or runs on it",
            next_step="pip install 'jax[cuda12]' on a machine with a GPU, or take another target",
        )
    settle()
    try:
        found = jax.local_devices(backend=target.family)
        raw = found[index]
    except (RuntimeError, AssertionError) as problem:  # jax asserts where JAX_PLATFORMS names only what is not there
        named = os.environ.get("JAX_PLATFORMS")
        hidden = f"let JAX_PLATFORMS (it is {named!r}) name {target.family}, or " if named else ""
        ahead = "; a TPU's programs are compiled without one by lower-model --target" if target.family == "tpu" else ""
        raise UnsupportedError(
            f"this process has no {target.family} device: {first_lines(problem)}",
            next_step=f"{hidden}take a target that is here{ahead}",
        ) from problem
    except IndexError:
        raise UnsupportedError(f"there is no {target.family} device {index}: there are {len(found)}") from None
    if target.device_kind not in ("", raw.device_kind):
        raise UnsupportedError(
            f"the device here is a {raw.device_kind}, and {target} is a {target.device_kind}",
            next_step="take the target that is here, or compile_ahead",
        )
    raws = _of_hosts(target, mesh) if processes.count() > 1 < mesh.devices else found[index : index + mesh.devices]
    if len(raws) < mesh.devices:
        hosts, (why, more) = processes.count(), limited(target.family)
        whose = f"{hosts} hosts share it equally, and this one has" if hosts > 1 else "this process has"
        raise UnsupportedError(
            f"a mesh of {mesh.devices} devices ({mesh}) does not fit: {whose} {len(found)} of {target.family}{why}",
            next_step=f"take a smaller mesh{more}",
        )
    return Device(target, raws, mesh)


def _of_hosts(target: Target, mesh: Mesh) -> list[Any]:
    """Equally many devices of each host, host by host; fewer than the mesh has where some host has too few."""
    each, left = divmod(mesh.devices, processes.count())
    everywhere = sorted(jax.devices(target.family), key=lambda raw: (raw.process_index, raw.id))
    by_host = [[raw for raw in everywhere if raw.process_index == host] for host in range(processes.count())]
    return [] if left else [raw for raws in by_host for raw in raws[:each]]


def device_count(target: Target | str = "cpu") -> int:
    """Devices of the target that this process may use. Raises UnsupportedError where it has none."""
    return len(jax.local_devices(backend=device(target).target.family))


def is_here(target: Target | str) -> bool:
    """Whether this process can run programs of `target`."""
    try:
        device(target)
    except UnsupportedError:
        return False
    return True


def compile(
    module: bytes | str,
    target: Target | str = "cpu",
    *,
    device_index: int = 0,
    options: Options | None = None,
    custom_calls: Iterable[str] = (),
    mesh: Mesh = ONE_DEVICE,
) -> Loaded:
    """Compiles StableHLO text, bytecode or a portable artifact. Releases the GIL: call it from several threads.

    custom_calls: the custom-call targets of the module; those of `fxhlo.runtime.core.native` are registered first.
    mesh: what the module was partitioned for, by Shardy's attributes. Raises CompileError, UnsupportedError.
    """
    require(custom_calls)
    return device(target, device_index, mesh).compile(module, options)


def deserialize(
    data: bytes,
    target: Target | str = "cpu",
    *,
    device_index: int = 0,
    options: Options | None = None,
    custom_calls: Iterable[str] = (),
    mesh: Mesh = ONE_DEVICE,
) -> Loaded:
    """Loads the bytes of `serialize` from a machine with an equal `fingerprint`. Raises CompileError, UnsupportedError."""
    require(custom_calls)
    return device(target, device_index, mesh).deserialize(data, options)


def compile_ahead(
    module: bytes | str, target: Target | str, *, options: Options | None = None, mesh: Mesh = ONE_DEVICE
) -> Compiled:
    """Compiles for the first devices of a TPU's topology with libtpu alone, or for a card with jax's CUDA plugin; neither need be here. Releases the GIL.

    Raises UnsupportedError without these and for other targets, OutOfMemoryError, CompileError.
    """
    from jax.interpreters.mlir import make_ir_context

    target = Target.parse(target)
    seal.check("compiling a module")
    raws = topology.devices(target)[mesh.first : mesh.first + mesh.devices]
    if len(raws) < mesh.devices:
        raise UnsupportedError(
            f"a mesh of {mesh.devices} devices ({mesh}) does not fit: {target} has {len(raws)}",
            next_step="name a larger topology",
        )
    with make_ir_context() as context, explained(f"the compiler refused the module for {target}", CompileError, module):
        parsed = _parsed(module, context)
        made = _compile_options(target, {**topology.OPTIONS.get(target.family, {}), **(options or {})}, raws)
        return Compiled(raws[0].client.compile(parsed, DeviceList(tuple(raws)), made), target)


def _parsed(module: bytes | str, context: Any) -> Any:
    """The module as MLIR's bindings have it: a compiler without a client takes no text."""
    from . import stablehlo

    try:
        return stablehlo.parse(module, context)
    except stablehlo.ir.MLIRError as problem:
        raise ValueError(str(problem)) from problem


def build(
    module: bytes | str,
    target: Target | str = "cpu",
    *,
    options: Options | None = None,
    custom_calls: Iterable[str] = (),
    mesh: Mesh = ONE_DEVICE,
) -> Compiled:
    """`compile` where a device of the target is here, `compile_ahead` where it is a TPU or a card that is not."""
    target = Target.parse(target)
    if topology.is_described(target) and not is_here(target):
        return compile_ahead(module, target, options=options, mesh=mesh)
    return compile(module, target, options=options, custom_calls=custom_calls, mesh=mesh)


def put(array: np.ndarray, target: Target | str = "cpu") -> Buffer:
    """`Device.put` on the first device of a target."""
    return device(target).put(array)


def put_shared(array: np.ndarray, target: Target | str = "cpu") -> Buffer:
    """`Device.put_shared` on the first device of a target."""
    return device(target).put_shared(array)


def zeros(shape: Sequence[int], dtype: np.dtype | str, target: Target | str = "cpu") -> Buffer:
    """`Device.zeros` on the first device of a target."""
    return device(target).zeros(shape, dtype)


def get(buffer: Buffer) -> np.ndarray:
    """The values, once they are there; read-only, and on the CPU the device's own memory. Raises ExecutionError."""
    try:
        return np.asarray(buffer)
    except RuntimeError as problem:
        raise _refused(problem, (buffer,)) from problem


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


def versions() -> dict[str, str]:
    """Versions that a bundle records about its writer."""
    from . import stablehlo

    return {"jaxlib": jaxlib.__version__, "stablehlo": stablehlo.version()}


def fingerprint(target: Target | str = "cpu") -> dict[str, str]:
    """What must be equal for a serialized executable to be loaded: versions, compile options, and the kind of machine."""
    target = Target.parse(target)
    ahead = topology.is_described(target) and not is_here(target)
    raw = topology.devices(target)[0] if ahead else device(target).raw
    platform_version = f"{raw.client.platform} {raw.client.platform_version}"
    given = {**target.compile_options, **(topology.OPTIONS.get(target.family, {}) if ahead else {})}
    options = " ".join(f"{name}={value}" for name, value in sorted(given.items()))
    found = {"jaxlib": jaxlib.__version__, "platform": platform_version, "options": options}
    if target.family == "cpu":
        return found | {"machine": platform.machine(), "features": _cpu_features()}
    return found | {"device": raw.device_kind}


def require(custom_calls: Iterable[str]) -> None:
    """Registers fxhlo's own custom calls where a module names some. Raises UnsupportedError with the reason."""
    wanted = sorted(custom_calls)
    if not wanted:
        return
    try:
        from . import native
    except ImportError as problem:
        reason: str | None = str(problem)
    else:
        if not set(wanted) & set(native.TARGETS):
            return
        reason = native.unavailable()
        if reason is None:
            native.register()
            return
    ours = [name for name in wanted if name.startswith("fxhlo_")]
    if ours:
        raise UnsupportedError(
            f"the module calls {', '.join(ours)}, and fxhlo's native kernels are not available: {reason}",
            next_step="install a C++ compiler and try again, or legalize the portable module on this machine: its kernels are in StableHLO then",
        )


@lru_cache(maxsize=4096)
def _abstract(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return ShapedArray(shape, dtype)


@cache
def _cpu_features() -> str:
    """A digest of the instruction sets that the kernel lists."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.split(":")[0].strip() in ("flags", "Features"):
                return hashlib.sha256(" ".join(sorted(line.split(":")[1].split())).encode()).hexdigest()[:16]
    return platform.processor()


def _handler(shape: Sequence[int], dtype: np.dtype, sharding: Any) -> Any:
    """What makes an array of a result's parts."""
    return _result_handler(_abstract(tuple(shape), dtype), sharding, committed=True, **UNCHECKED)


def _compile_options(target: Target, options: Options | None, raws: Sequence[Any]) -> Any:
    """jaxlib's form of the target's options with the caller's own on top; raws: the devices of one program."""
    made = CompileOptions()
    build = made.executable_build_options
    if len(raws) > 1:
        made.num_partitions = build.num_partitions = len(raws)
        build.use_spmd_partitioning = build.use_shardy_partitioner = True
    if len(raws) > 1 or raws[0].id:  # else the first device
        assigned = _jax.DeviceAssignment.create(np.array([[raw.id for raw in raws]]))
        made.device_assignment = build.device_assignment = assigned
    overrides = []
    for name, value in {**target.compile_options, **(options or {})}.items():
        if not name.startswith("xla_") and hasattr(build, name):
            setattr(build, name, value)
        else:
            value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
            overrides.append((name, value))
    made.env_option_overrides = overrides
    return made


def _refused(problem: Exception, buffers: Sequence[Any]) -> FxhloError:
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
