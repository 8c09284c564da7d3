"""torch.export of a module: from an nn.Module and example inputs to an ExportedProgram and its Program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from ...kernels.catalog import register_torch_ops
from ...passes.program import Program
from ...passes.torch_private import (
    LOST_TENSOR,
    NO_FLEX_BACKWARD,
    UNREGISTERED_CACHE,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    export_below_autograd,
    leaves_with_shapes,
    pytree,
    user_frames_kept,
)
from ..errors import CaptureError
from ..left_out import SHAPE, reasons
from .decomposable import is_wrapped
from .exported import from_exported
from .stand_ins import forward_through, standing_in
from .tracing import count_trace, first_lines, user_frame


def capture(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Captures a module by torch.export, or takes an ExportedProgram as it is, and decomposes it.

    args, kwargs: example inputs; real or fake. dynamic_shapes: as torch.export takes it.
    """
    register_torch_ops()
    if isinstance(module, ExportedProgram):
        return from_exported(module)
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(
            f"lower takes an nn.Module or an ExportedProgram, not {type(module).__name__}",
            next_step="wrap a function in an nn.Module whose forward calls it",
        )
    count_trace()
    try:
        with user_frames_kept() as keep, standing_in(module, keep):
            exported = _exported(module, tuple(args), dict(kwargs or {}), dynamic_shapes)
    except Exception as problem:
        raise CaptureError(
            f"torch.export could not capture {type(module).__name__}: {first_lines(problem)}",
            where=user_frame(problem),
            next_step=_advice(problem),
        ) from problem
    return from_exported(exported, _dim_names(module, args, kwargs, dynamic_shapes))


def _exported(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """torch.export's program; where that lost the inside of torch.func.grad or torch.autograd.grad, the one it records below them."""
    try:
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except NotImplementedError as problem:
        if not NO_FLEX_BACKWARD.is_in(problem):
            raise
        with torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as problem:
        if not LOST_TENSOR.is_in(problem):
            raise
    else:
        if not any(is_wrapped(constant) for constant in exported.constants.values()):
            return exported

    # Results that want gradients would bring their own backward into the graph.
    def detached(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, forward(*args, **kwargs))

    with forward_through(module, detached):
        return export_below_autograd(module, args, kwargs, dynamic_shapes)


def _advice(problem: Exception) -> str:
    if UNREGISTERED_CACHE.is_in(problem):
        return (
            "build the model with use_cache=False, or register its cache: "
            "transformers.integrations.executorch.register_dynamic_cache_export_support()"
        )
    if isinstance(problem, GuardOnDataDependentSymNode):
        return "a value decides there what the model's Python does: compute both ways and choose by torch.where, or use torch.cond"
    if isinstance(problem, DynamicOutputShapeException):
        return f"use another op: {reasons().get(str(problem.func), SHAPE)}"
    return "make the module exportable: torch.export.export(module, args) shows the whole story"


def _dim_names(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> list[dict[int, str]]:
    """For each leaf of the inputs, in order, the names of its dimensions: `Dim("batch")`, and the root of a derived one.

    dynamic_shapes was accepted by torch.export; its entries are found as torch finds them, by argument name or place.
    """
    if not dynamic_shapes:
        return []
    shapes = leaves_with_shapes(module, tuple(args), dict(kwargs or {}), dynamic_shapes)
    return [_names(shape) for shape in shapes]


def _names(shape: Any) -> dict[int, str]:
    """The names of one leaf's dimensions; shape: its entry in dynamic_shapes."""
    parts = (
        dict(shape)
        if isinstance(shape, Mapping)
        else dict(enumerate(shape))
        if isinstance(shape, tuple | list)
        else {0: shape}
    )
    dims = {index: getattr(dim, "root", dim) for index, dim in parts.items()}
    return {index: dim.__name__ for index, dim in dims.items() if isinstance(dim, torch.export.Dim)}
