"""`fxhlo.ragged_causal_conv1d` on the CPU: the C++ kernel of runtime/core/native through XLA's FFI."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...runtime.core import native
from ..spec import Operands

DTYPES = ("float32", "bfloat16", "float16")


def supports(operands: Operands, attributes: Mapping[str, Any]) -> str | None:
    return refused(operands, ("values", "weight", "state")) or native.planned()


def refused(operands: Operands, names: tuple[str, ...]) -> str | None:
    """None, or the first of these operands whose dtype the native kernels do not take."""
    for name in names:
        dtype = operands.named[name].dtype.name
        if dtype not in DTYPES:
            return f"{name} is {dtype}; the native kernel takes {' or '.join(DTYPES)}"
    return None


def lower(
    values: Array, weight: Array, bias: Array | None = None, *, state: Array, state_slots: Array, seq_lens: Array,
    query_start_loc: Array, silu: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the state is updated in place."""
    bias = jnp.zeros((0,), jnp.float32) if bias is None else bias.astype(jnp.float32)
    call = stepped("fxhlo_ragged_causal_conv1d", values, state, 3)
    output, updated = call(values, weight, bias, state, state_slots, seq_lens, query_start_loc, silu=np.int64(silu))
    return output, updated


def stepped(target: str, rows: Array, state: Array, place: int) -> Callable[..., Sequence[Array]]:
    """A call of a native kernel whose results are like `rows` and the state, which is its operand number `place`."""
    results = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (rows, state))
    return jax.ffi.ffi_call(target, results, input_output_aliases={place: 1})
