"""Lowers a JAX function to StableHLO, as lowering/lower.py does a torch module.

Comes in: a function over pytrees of arrays, example arguments, and which of them are weights or state. Goes out: an
HloModule like a torch model's: names, kinds and aliases in the signature, composites for legalization, weights for the
bundle. Guaranteed: the function is traced, not computed; a state is updated in place or the module is refused;
the module is portable: custom calls are refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ...passes import mlir
from ...passes.mlir import ir
from ...runtime.core.errors import FxhloError, UnsupportedError
from ...runtime.core.plugins import settle
from ...runtime.core.signature import Argument, Kind, Result, Signature
from ...runtime.core.targets import Target
from ..emit.signature import annotate
from ..errors import CaptureError
from ..module import HloModule
from . import composites as jax_composites  # noqa: F401  # registers how composites are lowered
from .emit import PLATFORM


def lower_jax(
    function: Callable[..., Any],
    *args: Any,
    weights: Sequence[str] = (),
    states: Sequence[str] = (),
    name: str | None = None,
    target: str | Target = "cpu",
) -> HloModule:
    """Lowers `function(*args)` for these shapes; lower it again for others.

    args: arrays, or `jax.ShapeDtypeStruct`s, in any pytrees. weights: names of parameters whose arrays are bound when the
    module is loaded, and saved in its bundle where they have values. states: names of parameters that a call updates in
    place; the function returns their new values, in this order, behind its own results: `return logits, caches`.

    The signature names an array by its parameter and its path: `params.layers.0.wq`. Raises CaptureError where the function
    cannot be traced or a state does not come back as it went in, UnsupportedError where the module would not be portable.
    """
    leaves = _leaves(function, args, weights, states)
    target = target if isinstance(target, Target) else Target.parse(target)
    name = name or re.sub(r"\W", "_", getattr(function, "__name__", "main"))
    settle()
    lowered = _lowered(function, jax.tree.map(_shape, args))
    results = _results(lowered.out_info, leaves, states)
    module = mlir.parse(mlir.bytecode(_module_of(lowered)), mlir.context())
    _check_portable(module)
    signature = _signature(leaves, results)
    with module.context:
        module.operation.attributes["sym_name"] = ir.StringAttr.get(name)
        for attribute in ("mhlo.num_partitions", "mhlo.num_replicas"):
            if attribute in module.operation.attributes:
                del module.operation.attributes[attribute]
        main = next(op for op in module.body.operations if ir.StringAttr(op.attributes["sym_name"]).value == "main")
        annotate(main, signature)
    module.operation.verify()
    tensors = {
        leaf.name: np.asarray(leaf.value) for leaf in leaves if leaf.kind == "weight" and _has_values(leaf.value)
    }
    return HloModule(module=module, signature=signature, tensors=tensors, name=name, target=str(target))


Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct


@dataclass(frozen=True)
class _Leaf:
    """One array of an argument or of the result."""

    name: str
    kind: Kind
    value: Leaf

    @property
    def type(self) -> tuple[tuple[int, ...], str]:
        return tuple(self.value.shape), np.dtype(self.value.dtype).name


def _leaves(
    function: Callable[..., Any], args: Sequence[Any], weights: Sequence[str], states: Sequence[str]
) -> list[_Leaf]:
    """The arrays of the arguments, in the order of the flattened pytrees."""
    bound = _bound(function, args)
    for name in (*weights, *states):
        if name not in bound:
            raise CaptureError(
                f"{name} is no parameter that this call gives the function: {', '.join(bound) or 'it gives none'}"
            )
    kinds: dict[str, Kind] = {**dict.fromkeys(weights, "weight"), **dict.fromkeys(states, "state")}
    found = []
    for name, value in bound.items():
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            if not hasattr(leaf, "dtype"):
                leaf = _number(_path(name, path), leaf)
            found.append(_Leaf(_path(name, path), kinds.get(name, "input"), leaf))
    _check_dtypes(found)
    return found


def _bound(function: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """The arguments by their parameters' names, in order; those of `*xs` are one tuple. Raises CaptureError."""
    try:
        return inspect.signature(function).bind(*args).arguments
    except (TypeError, ValueError) as problem:
        raise CaptureError(
            f"the function does not take these {len(args)} arguments by position: {problem}",
            next_step="lower a function that takes all its arrays by position: after functools.partial(f, k=...) what stands "
            "behind k in f's signature is by keyword alone; a lambda, as lambda x, y: f(x, k=2, y=y), gives them an order",
        ) from problem


def _shape(leaf: Leaf | complex) -> jax.ShapeDtypeStruct:
    """Drops all but shape and dtype: an array's sharding would be written into the module."""
    weak = getattr(leaf, "weak_type", isinstance(leaf, (bool, int, float, complex)))
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.numpy.result_type(leaf), weak_type=weak)


def _number(name: str, value: object) -> jax.Array:
    """A Python scalar as the array that JAX makes of it. Raises CaptureError for anything else."""
    if isinstance(value, (bool, int, float, complex)):
        return jax.numpy.asarray(value)
    raise CaptureError(
        f"{name} is {value!r}, which is no array",
        next_step="leave what is fixed out of the arguments: functools.partial, or a static field of the pytree",
    )


def _check_dtypes(leaves: Sequence[_Leaf]) -> None:
    """Raises CaptureError for dtypes that JAX would narrow silently, so that module, signature and bundle agree."""
    for leaf in leaves:
        dtype = leaf.value.dtype
        if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            raise CaptureError(
                f"{leaf.name} is {dtype}, which is no array of numbers",
                next_step="hand over jax.random.key_data(key), and make the key inside with jax.random.wrap_key_data",
            )
        canonical = jax.dtypes.canonicalize_dtype(dtype)
        if canonical != dtype:
            raise CaptureError(
                f"{leaf.name} is {dtype}, and JAX would make it {canonical}",
                next_step=f"convert it: .astype({canonical.name!r}); or set jax_enable_x64",
            )


def _path(root: str, path: tuple[Any, ...]) -> str:
    """The name of an array: its parameter's name and its path in the pytree."""
    tail = jax.tree_util.keystr(path, simple=True, separator=".")
    return f"{root}.{tail}" if tail else root


def _lowered(function: Callable[..., Any], args: Sequence[Any]) -> jax.stages.Lowered:
    try:
        return jax.jit(function, keep_unused=True).trace(*args).lower(lowering_platforms=(PLATFORM,))
    except FxhloError:
        raise
    except Exception as problem:
        raise CaptureError(
            f"JAX could not lower {getattr(function, '__name__', 'the function')}: {type(problem).__name__}: "
            f"{str(problem).splitlines()[0]}",
            next_step="jax.jit(function).trace(*args).lower() shows the whole story",
        ) from problem


def _module_of(lowered: jax.stages.Lowered) -> ir.Module:
    module = lowered.compiler_ir("stablehlo")
    assert module is not None
    return module


def _results(out_info: Any, leaves: Sequence[_Leaf], states: Sequence[str]) -> list[tuple[_Leaf, str | None]]:
    """Each array of the result, and the name of the state whose new value it is."""
    outputs = list(out_info) if isinstance(out_info, tuple) else [out_info]
    if len(outputs) < len(states):
        raise CaptureError(
            f"the function gives {len(outputs)} results, and its states are {', '.join(states)}",
            next_step="return the new value of each state behind the other results",
        )
    split = len(outputs) - len(states)
    own = outputs[:split]
    found: list[tuple[_Leaf, str | None]] = []
    for index, output in enumerate(own):
        root = "output" if len(own) == 1 else f"output_{index}"
        found += [
            (_Leaf(_path(root, path), "input", leaf), None)
            for path, leaf in jax.tree_util.tree_flatten_with_path(output)[0]
        ]
    for name, output in zip(states, outputs[split:], strict=True):
        before = {leaf.name: leaf for leaf in leaves if leaf.name == name or leaf.name.startswith(f"{name}.")}
        after = [
            _Leaf(_path(name, path), "state", leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(output)[0]
        ]
        if [(leaf.name, leaf.type) for leaf in after] != [(leaf.name, leaf.type) for leaf in before.values()]:
            raise CaptureError(
                f"the state {name} goes in as {_listed(before.values())} and would come out as {_listed(after)}",
                next_step="return its new value with the same structure, shapes and dtypes, as one of the last results",
            )
        found += [(_Leaf(f"{leaf.name}.updated", "state", leaf.value), leaf.name) for leaf in after]
    return found


def _listed(leaves: Iterable[_Leaf]) -> str:
    listed = [f"{leaf.name} {leaf.type[1]}{list(leaf.type[0])}" for leaf in leaves]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "") if listed else "nothing"


def _signature(leaves: Sequence[_Leaf], results: Sequence[tuple[_Leaf, str | None]]) -> Signature:
    updated = {name: index for index, (_, name) in enumerate(results) if name is not None}
    places = {leaf.name: index for index, leaf in enumerate(leaves)}
    return Signature(
        tuple(Argument(leaf.name, leaf.kind, *leaf.type, updated.get(leaf.name)) for leaf in leaves),
        tuple(Result(leaf.name, *leaf.type, places.get(name or "")) for leaf, name in results),
    )


def _has_values(value: Leaf) -> bool:
    return not isinstance(value, jax.ShapeDtypeStruct)


def _check_portable(module: ir.Module) -> None:
    calls = sorted(set(re.findall(r"stablehlo\.custom_call @([\w$.]+)", mlir.text(module))))
    if calls:
        raise UnsupportedError(
            f"the function lowers to custom calls ({', '.join(calls)}), which one target alone runs",
            next_step="call fxhlo.jax's composites instead of a kernel: legalization takes each target's own",
        )
