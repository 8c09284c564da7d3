"""jaxlib's own names of the PJRT client, which it keeps private: the one file that imports them, and what differs between its versions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..targets import Options, Target
from ..versions import misfit

try:
    import jax
    from jaxlib import _jax

    CompileOptions, DeviceList = _jax.CompileOptions, _jax.DeviceList
    COPY = _jax.HostBufferSemantics.IMMUTABLE_ONLY_DURING_CALL
    ALIAS = _jax.HostBufferSemantics.ZERO_COPY
    UNTIL_SENT = _jax.HostBufferSemantics.IMMUTABLE_UNTIL_TRANSFER_COMPLETES
    device_put, _result_handler = _jax.batched_device_put, _jax.array_result_handler
    ShapedArray, SingleDeviceSharding = jax.core.ShapedArray, jax.sharding.SingleDeviceSharding
    Buffer = jax.Array
    # jaxlib 0.11 dropped the option with the checks that it skipped. The docstring is the binding's signature.
    UNCHECKED = {"_skip_checks": True} if "_skip_checks" in (_result_handler.__doc__ or "") else {}
except (ImportError, AttributeError) as problem:
    raise misfit("PJRT client", problem) from problem


@lru_cache(maxsize=4096)
def abstract(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """jax's form of a shape and a dtype."""
    return ShapedArray(shape, dtype)


def handler(shape: Sequence[int], dtype: np.dtype, sharding: Any) -> Any:
    """What makes an array of a result's parts."""
    return _result_handler(abstract(tuple(shape), dtype), sharding, committed=True, **UNCHECKED)


def compile_options(target: Target, options: Options | None, raws: Sequence[Any]) -> Any:
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
