"""Lowers one implementation of a kernel to StableHLO for one target: it is traced by jax, and no device is needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ...kernels.spec import Implementation, Operands
from ...runtime.core.targets import Target

if TYPE_CHECKING:
    import jax


def lower_implementation(
    implementation: Implementation, operands: Operands, attributes: Mapping[str, Any], target: Target
) -> str:
    """StableHLO text of a module whose `main` takes the operands in their order. Raises what the implementation raises."""
    import jax

    from ...runtime.core.plugins import settle

    settle()  # lowering looks at jax's devices
    lower, names = implementation.bound(target), tuple(operands.named)

    def call(*arrays: jax.Array) -> Any:
        return lower(**dict(zip(names, arrays, strict=True)), **attributes)

    shapes = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in operands]
    wide = any(spec.dtype.itemsize == 8 and spec.dtype.kind in "iuf" for spec in operands)
    with jax.enable_x64(wide), _device_of(target):
        traced = jax.jit(call, keep_unused=True).trace(*shapes)
        return traced.lower(lowering_platforms=(target.family,)).as_text()


def _device_of(target: Target) -> AbstractContextManager[object]:
    """The context that tells Pallas which TPU it lowers for: a mesh without axes whose device is of the target's kind."""
    if target.family != "tpu":
        return nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    device = AbstractDevice(device_kind=target.device_kind, num_cores=target.cores, platform="tpu")
    return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
