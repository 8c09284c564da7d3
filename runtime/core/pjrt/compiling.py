"""From a module to a compiled one: for a device that is here, or ahead of time for one that is not.

A TPU's program is compiled on any machine by libtpu alone (`compile_ahead`, `build`), several processes at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import seal, topology
from ..errors import CompileError, UnsupportedError
from ..explain import explained
from ..mesh import ONE_DEVICE, Mesh
from ..targets import Options, Target
from .client import DeviceList, compile_options
from .compiled import Compiled
from .devices import Loaded
from .found import device, is_here


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
        made = compile_options(target, {**topology.OPTIONS.get(target.family, {}), **(options or {})}, raws)
        return Compiled(raws[0].client.compile(parsed, DeviceList(tuple(raws)), made), target)


def check_mesh(target: Target, mesh: Mesh) -> None:
    """Asks the compiler whether devices of the mesh can reach each other, by the smallest program that has them do so: less than a second.

    Raises UnsupportedError where it does not compile for so many of a TPU's topology, or there are fewer. Other targets are left alone.
    """
    if target.topology_name is None or mesh.devices == 1:
        return
    from jax.interpreters.mlir import make_ir_context

    every = topology.devices(target)
    raws = every[mesh.first : mesh.first + mesh.devices]
    number = f"{mesh.devices} of {len(every)} devices" + (f", from number {mesh.first} on" if mesh.first else "")
    if len(raws) < mesh.devices:
        raise UnsupportedError(
            f"{target} has only {len(every)} devices, not {mesh.first + mesh.devices}",
            next_step=f"name a larger topology, as {target.name}:...",
        )
    options = compile_options(target, topology.OPTIONS.get(target.family, {}), raws)
    with make_ir_context() as context:
        try:
            raws[0].client.compile(_parsed(_sum(mesh.devices), context), DeviceList(tuple(raws)), options)
        except RuntimeError as problem:
            said = str(problem).partition("\n")[0]
            raise UnsupportedError(
                f"libtpu does not compile for {number}, which are a part of {target}: {said}",
                next_step=f"name a topology of {mesh.devices} devices, as {target.name}:..., or take all of this one's",
            ) from problem


def _sum(devices: int) -> str:
    """A module that sums an array over so many devices."""
    array, group = "tensor<8x128xf32>", ", ".join(map(str, range(devices)))
    return f"""module @sum {{ func.func public @main(%0: {array}) -> {array} {{
  %1 = "stablehlo.all_reduce"(%0) ({{
    ^bb0(%2: tensor<f32>, %3: tensor<f32>):
      %4 = stablehlo.add %2, %3 : tensor<f32>
      stablehlo.return %4 : tensor<f32>
  }}) {{
    replica_groups = dense<[[{group}]]> : tensor<1x{devices}xi64>,
    channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, use_global_device_ids
  }} : ({array}) -> {array}
  return %1 : {array} }} }}"""


def _parsed(module: bytes | str, context: Any) -> Any:
    """The module as MLIR's bindings have it: a compiler without a client takes no text."""
    from .. import stablehlo

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


def require(custom_calls: Iterable[str]) -> None:
    """Registers fxhlo's own custom calls where a module names some. Raises UnsupportedError with the reason."""
    wanted = sorted(custom_calls)
    if not wanted:
        return
    try:
        from .. import native
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
