"""The one file that touches the MLIR bindings that come with jaxlib.

Comes in: nothing. Goes out: `ir`, the dialects, a context with StableHLO and CHLO loaded, and the few
operations on whole modules that the bindings spread over several places. Everything else in fxhlo imports the
bindings from here.
"""

from __future__ import annotations

import io

from ..runtime.core.stablehlo import parse
from ..runtime.core.versions import misfit

READABLE_SINCE = "1.17.0"
"""The StableHLO version that artifacts are written in: that of the oldest jaxlib in `versions.TRIED`."""

try:
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import chlo, func, stablehlo
    from jaxlib._jax import mlir as _jax_mlir
    from jaxlib.mlir._mlir_libs import _jax_mlir_ext
    from jaxlib.mlir.dialects import sdy
    from jaxlib.mlir.passmanager import PassManager
except ImportError as problem:
    raise misfit("MLIR bindings", problem) from problem

__all__ = ["chlo", "func", "ir", "parse", "sdy", "stablehlo"]


def context() -> ir.Context:
    """A new MLIR context that knows StableHLO, CHLO, func and Shardy."""
    made = ir.Context()
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)  # func and the other upstream dialects
    made.append_dialect_registry(registry)
    made.dialects[
        "func"
    ]  # loads it; the others are loaded where a module has them: to load all takes ten times as long
    stablehlo.register_dialect(made)
    chlo.register_dialect(made)
    sdy.register_dialect(made)
    return made


def bytecode(module: ir.Module) -> bytes:
    """MLIR bytecode of `module`, locations included."""
    out = io.BytesIO()
    module.operation.write_bytecode(file=out)
    return out.getvalue()


def portable(module: ir.Module) -> bytes:
    """The versioned StableHLO artifact of `module`: what is stored, since MLIR bytecode changes between versions of jaxlib.

    Every jaxlib that fxhlo takes reads it, and later ones do. Locations stay. Raises ValueError for an op that StableHLO
    `READABLE_SINCE` does not have.
    """
    data = bytecode(module)
    # StableHLO's serializer has no form for CHLO's ops (erf). jaxlib's, which takes four times as long, makes composites of those
    # that XLA implements, which XLA then recognizes, and decomposes the others. Of Shardy's ops it makes attributes and custom calls.
    if b"chlo" in data or b"sdy" in data:
        return _jax_mlir.serialize_portable_artifact(data, READABLE_SINCE)
    # From the bytes it would make a context, which takes longer than the rest; what it serializes it changes.
    return stablehlo.serialize_portable_artifact(parse(data, module.context), READABLE_SINCE)


def text(module: ir.Module, *, locations: bool = False) -> str:
    """Readable StableHLO, with the source locations if asked."""
    return str(module.operation.get_asm(enable_debug_info=locations, large_elements_limit=None))


def adopt(source: str | bytes, into: ir.Module | ir.Block, prefix: str) -> str:
    """Moves the functions of the module `source` to the end of `into`, as private ones named `<prefix>__<name>`. Text's own lines and columns,
    which differ with the digits of a size, are no locations.

    Returns the name that `main` has there.
    """
    block = into.body if isinstance(into, ir.Module) else into
    made = parse(source, block.owner.context)
    if isinstance(source, str):
        _run("strip-debuginfo", made)
    functions = {
        ir.SymbolTable.get_symbol_name(function.operation).value: function for function in made.body.operations
    }
    for name in sorted(functions, key=len, reverse=True):  # `p__f` before `f`, which becomes `p__f`
        function = functions[name].operation
        ir.SymbolTable.replace_all_symbol_uses(name, f"{prefix}__{name}", made.operation)
        ir.SymbolTable.set_symbol_name(function, f"{prefix}__{name}")
        ir.SymbolTable.set_visibility(function, "private")
    for view in functions.values():
        view.detach_from_parent()
        block.append(view)
    return f"{prefix}__main"


def erase_dead_functions(module: ir.Module) -> None:
    """Erases private functions that nothing refers to."""
    _run("symbol-dce", module)


def _run(name: str, module: ir.Module) -> None:
    """Runs one of MLIR's passes."""
    with module.context:
        PassManager.parse(f"builtin.module({name})").run(module.operation)
