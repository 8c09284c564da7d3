"""Differential testing of lowering: a function is run by eager torch and, lowered, by XLA on the CPU; both must agree.

    check(torch.add, x, y)                               # a function
    check(module, x, dynamic=({0: "batch"},))            # a module, with symbolic sizes
    check(lambda x: x.add_(1), x)                        # mutated inputs are compared too

Compared are the structure of the result, dtypes, shapes, values (NaN equals NaN; torch.testing's tolerances unless
given) and every input that eager torch changed in place. Both sides get fresh clones of the inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.lowering.lower import lower, lower_program
from fxhlo.lowering.lowered import as_numpy
from fxhlo.lowering.module import HloModule
from fxhlo.lowering.types import FROM_NUMPY
from fxhlo.passes import mlir
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.signature import RANDOM_KEY
from fxhlo.runtime.core.targets import Target


def check(
    function: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Any = None,
    bindings: Mapping[str, int] | None = None,
    **tolerances: Any,
) -> HloModule:
    """Asserts that `function(*args, **kwargs)` means the same lowered as in eager torch. Returns the lowered module.

    dynamic: dynamic_shapes, as torch.export takes them (for a function: a tuple with an entry for each argument).
    tolerances: rtol, atol and whatever else torch.testing.assert_close takes.
    """
    kwargs = dict(kwargs or {})
    hlo = lowered(function, args, kwargs, dynamic=dynamic, bindings=bindings)
    expected = eager(function, args, kwargs)
    actual = execute(hlo, args, kwargs)
    agree(expected, actual, **tolerances)
    return hlo


@dataclass
class Outcome:
    """What a call gave: the tensors of its results in order, and the tensors among its inputs that it changed."""

    results: list[Any]
    updates: dict[int, torch.Tensor]


def agree(expected: Outcome, actual: Outcome, **tolerances: Any) -> None:
    """Asserts that both outcomes are the same: number, dtypes, shapes, values."""
    tolerances = {"equal_nan": True, **tolerances}
    assert len(expected.results) == len(actual.results), f"{len(actual.results)} results, not {len(expected.results)}"
    for index, (ours, theirs) in enumerate(zip(actual.results, expected.results, strict=True)):
        _close(ours, theirs, f"result {index}", tolerances)
    for index, theirs in expected.updates.items():
        assert index in actual.updates, f"input {index} is changed by eager torch, but not by the lowered module"
        _close(actual.updates[index], theirs, f"input {index} (changed in place)", tolerances)


def _close(ours: torch.Tensor, theirs: Any, what: str, tolerances: Mapping[str, Any]) -> None:
    if not isinstance(theirs, torch.Tensor):
        theirs = torch.tensor(theirs)
    assert ours.dtype == theirs.dtype, f"{what}: {ours.dtype}, not {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{what}: shape {list(ours.shape)}, not {list(theirs.shape)}"
    torch.testing.assert_close(ours, theirs, msg=lambda message: f"{what}: {message}", check_stride=False, **tolerances)


class Call(torch.nn.Module):
    """A function as the module that torch.export wants."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def lowered(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: Any = None,
    bindings: Mapping[str, int] | None = None,
) -> HloModule:
    """`function` exported and lowered for the CPU, at the example's sizes where `bindings` says no others."""
    is_module = isinstance(function, torch.nn.Module)
    module = function if is_module else Call(function)
    if dynamic is not None and not is_module:
        dynamic = {"args": tuple(dynamic)}
    hlo = lower(module, tuple(clone(args)), clone(dict(kwargs or {})), dynamic_shapes=dynamic, bindings=bindings)
    return hlo if isinstance(hlo, HloModule) else hlo.bind_example()


def traced(function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> HloModule:
    """`function` of tensors captured by make_fx, the way of vLLM's models, and lowered: some ten times faster than by export."""
    inputs = [Input(f"x{index}", tuple(tensor.shape), tensor.dtype) for index, tensor in enumerate(tensors)]

    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.as_tensor(leaf) for leaf in pytree.tree_leaves(function(*values)) if leaf is not None)

    results = [f"output_{index}" for index in range(len(eager(function, tensors).results))]
    program = capture_callable(flat, torch.nn.Module(), inputs, {}, results=results)
    return lower_program(program, target=Target.parse("cpu"))


def eager(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Outcome:
    """What eager torch gives, on clones of the inputs."""
    args, kwargs = clone((tuple(args), dict(kwargs or {})))
    inputs = _tensors((args, kwargs))
    before = [tensor.detach().clone() for tensor in inputs]
    with torch.no_grad():
        results = function(*args, **kwargs)
    updates = {
        index: after.detach()
        for index, (old, after) in enumerate(zip(before, inputs, strict=True))
        if not same_bits(old, after)
    }
    return Outcome(
        [
            leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
            for leaf in pytree.tree_leaves(results)
            if leaf is not None
        ],
        updates,
    )


def execute(hlo: HloModule, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Outcome:
    """What the compiled module gives for these inputs."""
    inputs = iter(_tensors((tuple(args), dict(kwargs or {}))))
    constants = hlo.arrays()
    arrays, names = [], []
    for argument in hlo.signature.arguments:
        names.append(argument.name)
        if argument.kind in ("weight", "buffer", "constant"):
            arrays.append(constants[argument.name])
        else:
            arrays.append(np.array([1, 2], np.int32) if argument.name == RANDOM_KEY else as_numpy(next(inputs)))
    outputs = compiled(hlo)(arrays)
    users = [
        argument.name for argument in hlo.signature.arguments if argument.kind not in ("weight", "buffer", "constant")
    ]
    outcome = Outcome([], {})
    for result, output in zip(hlo.signature.results, outputs, strict=True):
        tensor = as_tensor(output)
        if result.alias is None:
            outcome.results.append(tensor)
        elif names[result.alias] in users:
            outcome.updates[users.index(names[result.alias])] = tensor
    return outcome


def compiled(hlo: HloModule) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """The module compiled with the target's own options, as a function from numpy to numpy."""
    legalized = hlo.legalized() if "stablehlo.composite" in str(hlo.module) else None
    module = legalized.bytecode if legalized else mlir.bytecode(hlo.module)
    loaded = pjrt.compile(module, hlo.target, custom_calls=legalized.custom_calls if legalized else ())
    return lambda arrays: [pjrt.get(result) for result in loaded.execute([pjrt.put(array) for array in arrays])]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A torch tensor with a copy of `array`, ml_dtypes included."""
    dtype = FROM_NUMPY[array.dtype]
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(np.array(array).view(f"uint{8 * array.itemsize}")).view(dtype)


def clone(tree: Any) -> Any:
    """A copy whose tensors are fresh; strides are kept."""
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), tree)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(*(torch.from_numpy(as_numpy(t).reshape(-1).view(np.uint8)) for t in (one, other)))
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
