"""fxhlo's composites in JAX functions: one JAX primitive, lowered to `stablehlo.composite`.

Comes in: a kernel of the catalog and JAX arrays. Goes out: the kernel's results as JAX arrays, and in the module of whatever
traces the call (`jax.jit`, `jax.export`, `lower_jax`) a composite with the name, version, attributes and decomposition that
the same call has in a torch model's module. Guaranteed: the decomposition is the kernel's torch reference, traced by the same
code, so that a composite means the same in both; arguments that do not fit the schema are refused at the call.

Outside of `lower_jax` a call runs the reference on JAX's default backend. There is no rule for gradients or for
`vmap`: JAX raises. Touches JAX's primitives (`jax.extend.core`, `jax.interpreters.mlir`); tried with jax 0.10.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import jax
import numpy as np
import torch
from jax.extend.core import Primitive
from jax.interpreters import mlir as jax_mlir

from ...kernels.catalog import kernels
from ...kernels.spec import Kernel
from ...passes.mlir import adopt, ir, text
from ...passes.program import Argument, Program, Result
from ...passes.torch_private import FakeTensorMode, parse_schema
from ...runtime.core.errors import ShapeError
from ..emit.composite import composite_op
from ..emit.emit import emit
from ..emit.trace import trace_reference
from ..errors import LoweringError
from ..types import FROM_NUMPY, TensorType, mlir_type, numpy_dtype

Attributes = tuple[tuple[str, Any], ...]
"""The attributes of a call by name, in the schema's order."""

KINDS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool, "str": str}


@cache
def composite(name: str) -> Callable[..., Any]:
    """The kernel `name` as a function of JAX arrays with the parameters of its schema: tensors by position or name (optional ones may be
    None or absent), attributes by name. Returns an array or a tuple of arrays; raises TypeError, ShapeError."""
    kernel = kernels()[f"fxhlo.{name}"]
    schema = parse_schema(f"fxhlo::{kernel.schema}")

    def call(*operands: Any, **named: Any) -> Any:
        given = _bound(kernel, schema.arguments, operands, named)
        arrays = {key: value for key, value in given.items() if key not in attributes and value is not None}
        static = tuple((key, given[key]) for key in attributes)
        results = _composite.bind(*arrays.values(), kernel=name, operands=tuple(arrays), attributes=static)
        return results[0] if len(schema.returns) == 1 else tuple(results)

    attributes = [one.name for one in schema.arguments if str(one.type) in KINDS]
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{kernel.schema}\n\n{kernel.reference.__doc__ or ''}"
    return call


def _bound(
    kernel: Kernel, parameters: Sequence[Any], operands: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """The call's arguments by the schema's names, in its order. Raises TypeError, as a Python function does."""
    names = [one.name for one in parameters]
    by_place = [one.name for one in parameters if not one.kwarg_only]
    if len(operands) > len(by_place):
        raise TypeError(f"{kernel.name} takes {len(by_place)} operands by place, not {len(operands)}: {kernel.schema}")
    given = dict(zip(by_place, operands, strict=False))
    for name, value in named.items():
        if name in given or name not in names:
            raise TypeError(
                f"{kernel.name} {'has two values for' if name in given else 'takes no'} {name}: {kernel.schema}"
            )
        given[name] = value
    bound: dict[str, Any] = {}
    for one in parameters:
        value = given.get(one.name, one.default_value)
        if value is None and not str(one.type).startswith("Optional"):
            raise TypeError(f"{kernel.name} misses {one.name}: {kernel.schema}")
        convert = KINDS.get(str(one.type), jax.numpy.asarray)
        bound[one.name] = None if value is None else convert(value)
    return bound


# -- the primitive -------------------------------------------------------------------------------------------------

_composite = Primitive("fxhlo_composite")
_composite.multiple_results = True


def _result_types(*avals: Any, kernel: str, operands: tuple[str, ...], attributes: Attributes) -> list[Any]:
    types = _types(kernel, operands, avals)
    return [jax.core.ShapedArray(type_.shape, numpy_dtype(type_.dtype)) for type_ in _fake(kernel, types, attributes)]


def _types(kernel: str, operands: tuple[str, ...], avals: Sequence[Any]) -> tuple[tuple[str, TensorType], ...]:
    """The operands' names and torch types, as the reference takes them. Raises ShapeError."""
    types, allowed = [], kernels()[f"fxhlo.{kernel}"].dtypes
    for name, aval in zip(operands, avals, strict=True):
        if not all(isinstance(size, int) for size in aval.shape):
            raise ShapeError(
                f"{kernel}: {name} has the symbolic shape {aval.shape}", next_step="lower one module per size"
            )
        if np.dtype(aval.dtype) not in FROM_NUMPY:
            raise ShapeError(
                f"{kernel}: {name} is {aval.dtype}, a dtype that torch does not have", next_step="convert it"
            )
        if np.dtype(aval.dtype).name not in allowed.get(name, (np.dtype(aval.dtype).name,)):
            raise ShapeError(
                f"{kernel}: {name} is {aval.dtype}, not {' or '.join(allowed[name])}",
                next_step=f"convert it: {name}.astype({allowed[name][0]!r})",
            )
        types.append((name, TensorType(tuple(aval.shape), FROM_NUMPY[np.dtype(aval.dtype)])))
    return tuple(types)


@lru_cache(maxsize=1024)
def _fake(kernel: str, types: tuple[tuple[str, TensorType], ...], attributes: Attributes) -> tuple[TensorType, ...]:
    """The types of the kernel's results for operands of `types`."""
    spec = kernels()[f"fxhlo.{kernel}"]
    schema = parse_schema(f"fxhlo::{spec.schema}")
    with FakeTensorMode():
        tensors = {name: torch.empty(type_.shape, dtype=type_.dtype) for name, type_ in types}
        given = {**tensors, **dict(attributes)}
        places = [given.pop(one.name, None) for one in schema.arguments if not one.kwarg_only]
        results = spec.fake(*places, **given)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(TensorType(tuple(result.shape), result.dtype) for result in results)


def _run(*arrays: Any, **params: Any) -> Any:
    return _compiled(tuple(params.items()))(*arrays)


@lru_cache(maxsize=256)
def _compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Compiles the call alone, for use outside of a trace."""
    return jax.jit(lambda *arrays: _composite.bind(*arrays, **dict(params)))


def _lower(ctx: Any, *values: Any, kernel: str, operands: tuple[str, ...], attributes: Attributes) -> Any:
    spec, module = kernels()[f"fxhlo.{kernel}"], ctx.module_context.module
    types = _types(kernel, operands, ctx.avals_in)
    prefix = f"fxhlo_{kernel}_{hashlib.sha256(repr((types, attributes)).encode()).hexdigest()[:8]}"
    decomposition = f"{prefix}__main"
    if not any(ir.StringAttr(op.attributes["sym_name"]).value == decomposition for op in module.body.operations):
        adopt(reference_text(kernel, types, attributes), module, prefix)
    results = [mlir_type(*type_) for type_ in _fake(kernel, types, attributes)]
    return list(composite_op(spec, operands, values, dict(attributes), results, decomposition).results)


@lru_cache(maxsize=256)
def reference_text(kernel: str, types: tuple[tuple[str, TensorType], ...], attributes: Attributes) -> str:
    """Lowers the kernel's reference over operands of `types` to a module's text, as its `main`."""
    try:
        graph = trace_reference(_tupled(kernel), dict(types), dict(attributes))
    except Exception as problem:
        shapes = ", ".join(f"{name} {type_.dtype}{list(type_.shape)}" for name, type_ in types)
        raise LoweringError(
            f"{kernel} does not take {shapes}: {type(problem).__name__}: {str(problem).splitlines()[0]}",
            next_step=f"see what its reference says of the operands: kernels/{kernel}/",
        ) from problem
    results = tuple(Result(f"output_{index}") for index in range(len(_fake(kernel, types, attributes))))
    program = Program(graph, tuple(Argument(name, "input") for name, _ in types), results)
    return text(emit(program).module)


@cache
def _tupled(kernel: str) -> Callable[..., Any]:
    """Wraps the reference to return a tuple, also for one result."""
    reference = kernels()[f"fxhlo.{kernel}"].reference

    def call(**operands: Any) -> Any:
        results = reference(**_completed(kernel, operands))
        return results if isinstance(results, tuple) else (results,)

    return call


def _completed(kernel: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with None for each optional operand that is absent."""
    schema = parse_schema(f"fxhlo::{kernels()[f'fxhlo.{kernel}'].schema}")
    return {one.name: given.get(one.name) for one in schema.arguments}


_composite.def_abstract_eval(_result_types)
_composite.def_impl(_run)
jax_mlir.register_lowering(_composite, _lower)
