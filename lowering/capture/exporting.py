"""torch.export of a module: from an nn.Module and example inputs to an ExportedProgram and its Program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.export._trace import _export
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from ...kernels.catalog import register_torch_ops
from ...passes.program import Program
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
        with _lines_kept() as keep, standing_in(module, keep):
            exported = _exported(module, tuple(args), dict(kwargs or {}), dynamic_shapes)
    except Exception as problem:
        raise CaptureError(
            f"torch.export could not capture {type(module).__name__}: {first_lines(problem)}",
            where=user_frame(problem),
            next_step=_advice(problem),
        ) from problem
    return from_exported(exported, _dim_names(module, args, kwargs, dynamic_shapes))


@contextmanager
def _lines_kept() -> Iterator[Callable[[FrameType | None], None]]:
    """torch.export notes the lines of functions called `forward` alone; the functions of frames that are shown to `keep` count too."""
    anchors = fx.proxy._STACK_TRACE_ANCHORS
    before = set(anchors)

    def keep(frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_name != "forward":
            if "/torch/" not in frame.f_code.co_filename:
                anchors.add((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back

    try:
        yield keep
    finally:
        anchors.intersection_update(before)


_LOST = ("fake tensor in the exported program constant's list", "object has no attribute 'constant'")
"""What torch.export says where it lost a tensor that torch.func or torch.autograd made: it records above them."""


def _exported(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """torch.export's program; where that lost the inside of torch.func.grad or torch.autograd.grad, the one it records below them."""
    try:
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except NotImplementedError as problem:
        if "FlexAttention does not support backward on CPU" not in str(problem):
            raise
        with torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as problem:
        if not any(text in str(problem) for text in _LOST):
            raise
    else:
        if not any(is_wrapped(constant) for constant in exported.constants.values()):
            return exported

    # Results that want gradients would bring their own backward into the graph.
    def detached(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, forward(*args, **kwargs))

    with forward_through(module, detached):
        return _export(module, args, kwargs, dynamic_shapes, strict=False, pre_dispatch=False)


def _advice(problem: Exception) -> str:
    if "Cache'>" in str(problem):
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
    from torch.export import dynamic_shapes as torch_shapes

    if not dynamic_shapes:
        return []
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
        dynamic_shapes = dynamic_shapes.dynamic_shapes(module, tuple(args), dict(kwargs or {}))
    inputs = torch_shapes._combine_args(module, tuple(args), dict(kwargs or {}))
    if isinstance(dynamic_shapes, tuple | list):
        dynamic_shapes = dict(zip(inputs, dynamic_shapes, strict=True))
    order = [name for name in inputs if name not in (kwargs or {})] + [name for name in kwargs or {} if name in inputs]
    inputs, dynamic_shapes = (
        {name: tree[name] for name in order} for tree in (inputs, dynamic_shapes)
    )  # the graph's order
    found: list[dict[int, str]] = []

    def note(path: Any, leaf: Any, shape: Any = None) -> None:
        parts = (
            dict(shape)
            if isinstance(shape, Mapping)
            else dict(enumerate(shape))
            if isinstance(shape, tuple | list)
            else {0: shape}
        )
        dims = {index: getattr(dim, "root", dim) for index, dim in parts.items()}
        found.append({index: dim.__name__ for index, dim in dims.items() if isinstance(dim, torch.export.Dim)})

    torch_shapes._tree_map_with_path(note, inputs, dynamic_shapes)
    return found
