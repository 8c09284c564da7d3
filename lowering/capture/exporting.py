"""Exports an nn.Module with example inputs by torch.export and makes the Program of it."""

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
    export_below_autograd,
    guards_noted,
    pytree,
    user_frames_kept,
)
from ...runtime.core.errors import FxhloError
from ..errors import CaptureError
from .decomposable import is_wrapped
from .exported import from_exported
from .memory import refuse_old_memory
from .problems import Asked, check_inputs, explained
from .sizes import Sizes, asked_sizes, export_any_size
from .stand_ins import forward_through, standing_in
from .tracing import count_trace


def capture(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Exports a module by torch.export (an ExportedProgram is used as given) and decomposes the program.

    args, kwargs: example inputs, real or fake tensors. dynamic_shapes: as for torch.export. Raises CaptureError, and
    SealedError in a sealed process.
    """
    register_torch_ops()
    if isinstance(module, ExportedProgram):
        return from_exported(module)
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(
            f"lower takes an nn.Module or an ExportedProgram, not {type(module).__name__}",
            next_step="wrap a function in an nn.Module whose forward calls it",
        )
    if isinstance(args, torch.Tensor):
        raise CaptureError("args is a tensor, and lower takes a tuple of inputs", next_step="pass (x,) instead of x")
    count_trace()
    args, kwargs = tuple(args), dict(kwargs or {})
    check_inputs(args, kwargs)
    asked: list[Asked] = []
    try:
        with user_frames_kept() as keep, standing_in(module, keep) as assigned, guards_noted(asked):
            exported, any_size = _exported(module, args, kwargs, dynamic_shapes)
        if assigned:
            refuse_old_memory(exported.graph_module, assigned)
    except FxhloError:
        raise
    except Exception as problem:
        raise explained(problem, module, asked) from problem
    return from_exported(exported, Sizes(asked_sizes(module, args, kwargs, dynamic_shapes), any_size))


def _exported(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object], dynamic_shapes: Any
) -> tuple[ExportedProgram, bool]:
    """Returns the exported program, and whether its dynamic sizes may also be 0 or 1."""
    if not dynamic_shapes:
        return _export_module(module, args, kwargs, None), False
    return export_any_size(lambda shapes: _export_module(module, args, kwargs, shapes), dynamic_shapes)


def _export_module(
    module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object], dynamic_shapes: Any
) -> ExportedProgram:
    """Exports the module; below autograd where torch.export loses what torch.func.grad or torch.autograd.grad computes."""
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

    # Results that require gradients would add their backward to the graph.
    def detached(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, forward(*args, **kwargs))

    with forward_through(module, detached):
        return export_below_autograd(module, args, kwargs, dynamic_shapes)
