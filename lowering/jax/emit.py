"""Rules that are written as a JAX function: algorithms with loops (decompositions of matrices, special functions).

Comes in: a JAX function over arrays and its static arguments. Goes out: its StableHLO as a private function of the
module, called. Guaranteed: one function for all calls of the same types; no custom call, so the module stays portable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...passes.mlir import adopt, func, ir
from ..emit.context import Context
from ..errors import LoweringError
from ..types import FROM_NUMPY, Value, mlir_type, numpy_dtype

PLATFORM = "tpu"
"""JAX lowers linear algebra to LAPACK calls for the CPU; for the TPU it stays StableHLO, which every target takes."""


def emit_jax(ctx: Context, function: Callable[..., Any], *operands: Value, **static: Any) -> list[Value]:
    """`function(*operands, **static)` in the module. static: hashable. Returns its results in order."""
    import jax

    from ...runtime.core import pjrt

    pjrt.settle()  # lowering looks at jax's devices
    emitter = ctx.emitter
    assert emitter is not None
    key = ("jax", function, tuple(operand.type for operand in operands), tuple(sorted(static.items())))
    shapes = [jax.ShapeDtypeStruct(operand.shape, numpy_dtype(operand.dtype)) for operand in operands]
    if key not in emitter.functions:
        wide = any(operand.dtype.itemsize >= 8 and not operand.dtype.is_complex for operand in operands)
        with jax.enable_x64(wide or any(str(operand.dtype) == "torch.complex128" for operand in operands)):
            jitted = jax.jit(lambda *arrays: function(*arrays, **static), keep_unused=True)
            lowered = jitted.trace(*shapes).lower(lowering_platforms=(PLATFORM,))
        source = lowered.as_text()
        if "custom_call" in source:
            raise LoweringError(
                f"{ctx.target_op}: the JAX function {function.__name__} needs a custom call, which is not portable",
                next_step="report this as a bug of fxhlo",
            )
        prefix = f"{function.__name__.strip('_')}_{len(emitter.functions)}"
        infos = [(tuple(info.shape), FROM_NUMPY[info.dtype]) for info in jax.tree.leaves(lowered.out_info)]
        emitter.functions[key] = adopt(source, emitter.block, prefix)
        emitter.jax_results[key] = infos
    infos = emitter.jax_results[key]
    call = func.CallOp(
        [mlir_type(*info) for info in infos],
        ir.FlatSymbolRefAttr.get(emitter.functions[key]),
        [operand.ir for operand in operands],
    )
    return [Value(result, *info) for result, info in zip(call.results, infos, strict=True)]
