"""Reads StableHLO in any of the forms in which it is stored: text, MLIR bytecode, or a portable artifact.

Comes in: bytes or text, and a context that knows StableHLO. Goes out: a module of MLIR's bindings. The core parses only what a compiler
without a client takes (pjrt.compile_ahead); passes/mlir.py has all else that touches the bindings.
"""

from __future__ import annotations

from .versions import misfit

try:
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo
except ImportError as problem:
    raise misfit("MLIR bindings", problem) from problem

MAGIC = b"StableHLO_v"
"""What the producer's name in a portable artifact begins with; it is in the first bytes, after MLIR's own magic number."""


def parse(module: bytes | str, context: ir.Context) -> ir.Module:
    """The module in `context`. Raises ir.MLIRError."""
    if isinstance(module, bytes) and MAGIC in module[:64]:
        return stablehlo.deserialize_portable_artifact(context, module)
    with context:
        return ir.Module.parse(module)


def version() -> str:
    """The StableHLO version of the bindings, such as "1.17.0"."""
    return stablehlo.get_current_version()
