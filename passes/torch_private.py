"""torch's private interfaces: the one file of the compiler that touches them.

Comes in: nothing. Goes out: the private names that tracing and decomposing need, functions that read private attributes, context
managers that patch torch's global tables, and what torch says in the text of an error alone. It lies on the passes' floor, the
lowest one that traces.
Guaranteed: on a torch that lacks one of the names, one error says so and which versions work; a patch holds LOCK for as long as it
is in place and leaves the tables as it found them. What imports dynamo, which takes seconds, is imported when it is first called.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

from ..runtime.core.errors import FxhloError

if TYPE_CHECKING:
    from torch._guards import Source

TRIED = ("2.13.0",)
"""Versions of torch that this file was tried with."""

_OURS = f"{Path(__file__).parents[1]}/lowering/"

LOCK = RLock()
"""Held while a global table of torch is patched: captures in several threads run one after the other."""


class TorchVersionError(FxhloError):
    """This version of torch lacks a private interface that capture needs."""


@contextmanager
def _known_interfaces() -> Iterator[None]:
    """Raises TorchVersionError where torch lacks what is imported or looked up inside."""
    try:
        yield
    except (ImportError, AttributeError) as problem:
        raise TorchVersionError(
            f"torch {torch.__version__} lacks a private interface that fxhlo's capture needs ({problem}); "
            f"it was tried with torch {', '.join(TRIED)}",
            next_step=f"pip install torch=={TRIED[-1]}",
        ) from problem


with _known_interfaces():
    from torch._C import DispatchKey, FunctionSchema, parse_schema
    from torch._C._functorch import is_functorch_wrapped_tensor
    from torch._decomp import decomposition_table
    from torch._decomp.decompositions import multi_margin_loss
    from torch._guards import detect_fake_mode
    from torch._higher_order_ops import flex_attention, scan
    from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
    from torch._prims_common import is_contiguous_or_false
    from torch._refs import linspace
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
    from torch.export.dynamic_shapes import _combine_args, _DimHint, _tree_map_with_path
    from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule
    from torch.fx.experimental import _config as tracing_config
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        GuardOnDataDependentSymNode,
        PendingUnbackedSymbolNotFound,
        ShapeEnv,
        ShapeGuard,
        guard_or_false,
        guarding_hint_or_throw,
        has_guarding_hint,
    )
    from torch.nn.modules import transformer
    from torch.nn.utils.stateless import _reparametrize_module as reparametrized
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import _disable_current_modes as without_modes

    _STACK_TRACE_ANCHORS = fx.proxy._STACK_TRACE_ANCHORS
    transformer._detect_is_causal_mask  # noqa: B018  # patched below
    fused_sdp_choice = torch._fused_sdp_choice

__all__ = [
    "LOCK",
    "TRIED",
    "DimDynamic",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "FunctionSchema",
    "GuardOnDataDependentSymNode",
    "HigherOrderOperator",
    "LazyGraphModule",
    "OpOverload",
    "OpOverloadPacket",
    "PendingUnbackedSymbolNotFound",
    "ShapeEnv",
    "ShapeGuard",
    "decomposition_table",
    "detect_fake_mode",
    "flex_attention",
    "fused_sdp_choice",
    "guard_or_false",
    "guarding_hint_or_throw",
    "has_guarding_hint",
    "is_contiguous_or_false",
    "is_functorch_wrapped_tensor",
    "linspace",
    "make_fx",
    "multi_margin_loss",
    "parse_schema",
    "pytree",
    "reparametrized",
    "scan",
    "without_modes",
]


# -- private attributes ------------------------------------------------------------------------------------------------


def schema_of(op: OpOverload) -> FunctionSchema:
    """The op's schema: names, types and defaults of its parameters, its returns, whether it is mutable."""
    return op._schema


def is_mutable(op: object) -> bool:
    """Whether `op` is an overload that writes to an operand."""
    return isinstance(op, OpOverload) and op._schema.is_mutable


def copied_codegen(graph: fx.Graph) -> fx.graph.CodeGen:
    """A copy of what says how the graph's Python takes its arguments and returns its results (pytrees)."""
    return copy.copy(graph._codegen)


def storage_id(tensor: Tensor) -> int:
    """The identity of the memory behind a tensor, also of one on the meta device."""
    return tensor.untyped_storage()._cdata


def with_graph(exported: ExportedProgram, module: fx.GraphModule, signature: ExportGraphSignature) -> ExportedProgram:
    """A copy of the program with another graph and the signature that belongs to it."""
    return exported._update(module, signature)


def new_size(environment: ShapeEnv, name: str, hint: int) -> torch.SymInt:
    """A new symbolic size, which 0 and 1 do not specialize. hint: the size with which Python branches are decided."""
    with _known_interfaces():
        from torch._dynamo.source import ConstantSource

    source: Source = ConstantSource(name)
    symbol = environment.create_symbol(hint, source, DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True)
    size = environment.create_symintnode(symbol, hint=hint, source=source)
    assert isinstance(size, torch.SymInt)
    return size


def leaves_with_shapes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> list[Any]:
    """What `dynamic_shapes`, as torch.export takes it, says of each leaf of the inputs, in the order of the graph's inputs."""
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
        dynamic_shapes = dynamic_shapes.dynamic_shapes(module, args, kwargs)
    inputs = _combine_args(module, args, kwargs)
    if isinstance(dynamic_shapes, tuple | list):
        dynamic_shapes = dict(zip(inputs, dynamic_shapes, strict=True))
    order = [name for name in inputs if name not in kwargs] + [name for name in kwargs if name in inputs]
    found: list[Any] = []
    _tree_map_with_path(
        lambda path, leaf, shape=None: found.append(shape),
        {name: inputs[name] for name in order},
        {name: dynamic_shapes[name] for name in order},
    )
    return found


def child_names(spec: pytree.TreeSpec) -> tuple[str, ...] | None:
    """The names by which a registered container knows its parts: a dataclass's fields; None where it has none."""
    node = pytree.SUPPORTED_NODES.get(spec.type)
    if node is None or node.flatten_with_keys_fn is None:
        return None
    count = len(spec.children())
    try:
        keyed, _ = node.flatten_with_keys_fn(node.unflatten_fn([None] * count, spec.context))
    except Exception:  # a constructor that computes
        keyed = []
    names: Any = [getattr(key, "name", getattr(key, "key", None)) for key, _ in keyed]
    for context in (names, spec.context, *(spec.context if isinstance(spec.context, tuple | list) else ())):
        if _are_names(context, count):
            return tuple(context)
    return None


def _are_names(context: Any, count: int) -> bool:
    return (
        isinstance(context, list | tuple) and len(context) == count and all(isinstance(name, str) for name in context)
    )


def hint_kind(shape: Any) -> str | None:
    """ "AUTO", "DYNAMIC" or "STATIC" of a hint such as `Dim.AUTO(min=1)`; None of anything else."""
    return shape.type.name if isinstance(shape, _DimHint) else None


def is_subclass(tensor: Tensor) -> bool:
    """Whether the tensor's class has kernels of its own, as masked and nested tensors have."""
    return not isinstance(tensor, FakeTensor) and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


@contextmanager
def guards_noted(found: list[tuple[Any, str | None]]) -> Iterator[None]:
    """While it is entered, each condition on sizes that a trace relies on is added to `found`, with the user's file and line."""
    own = ShapeEnv._log_guard

    def noted(self: ShapeEnv, prefix: str, guard: Any, *rest: Any, **named: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (
            "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename.startswith(_OURS)
        ):
            frame = frame.f_back
        found.append((guard, f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else None))
        own(self, prefix, guard, *rest, **named)

    with LOCK:
        ShapeEnv._log_guard = noted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            ShapeEnv._log_guard = own  # type: ignore[method-assign]


@contextmanager
def replacements_noted(environment: ShapeEnv, note: Callable[[Any], None]) -> Iterator[None]:
    """While it is entered, `note` is called with each symbol that gets a number or another symbol in its place."""
    own = environment._set_replacement

    def noted(symbol: Any, value: Any, *rest: Any) -> None:
        note(symbol)
        own(symbol, value, *rest)

    environment._set_replacement = noted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del environment._set_replacement


def export_below_autograd(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """torch.export that records below autograd and torch.func, where their tensors are plain ones."""
    with _known_interfaces():
        from torch.export._trace import _export

    return _export(module, args, kwargs, dynamic_shapes, strict=False, pre_dispatch=False)


def vmap_over_scores(
    function: Callable[..., Tensor], lead: tuple[int | None, ...], buffers: int
) -> Callable[..., Tensor]:
    """flex_attention's `function` of one element (lead: the batched leading operands; batch, head, row, key; buffers) over all."""
    with _known_interfaces():
        from torch.nn.attention.flex_attention import _vmap_for_bhqkv

    return _vmap_for_bhqkv(function, lead, (None,) * buffers)


@contextmanager
def indices_by_tensor() -> Iterator[None]:
    """Within, `x[t]` of a batched 0-d tensor indexes instead of reading its value, as flex_attention's functions need it."""
    with _known_interfaces():
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    with TransformGetItemToIndex():
        yield


# -- patches of torch's global tables ----------------------------------------------------------------------------------


@contextmanager
def user_frames_kept() -> Iterator[Callable[[FrameType | None], None]]:
    """torch.export notes the lines of functions called `forward` alone; the functions of frames given to `keep` count too."""
    with LOCK:
        before = set(_STACK_TRACE_ANCHORS)

        def keep(frame: FrameType | None) -> None:
            while frame is not None and frame.f_code.co_name != "forward":
                if "/torch/" not in frame.f_code.co_filename:
                    _STACK_TRACE_ANCHORS.add((frame.f_code.co_filename, frame.f_code.co_name))
                frame = frame.f_back

        try:
            yield keep
        finally:
            _STACK_TRACE_ANCHORS.intersection_update(before)


@contextmanager
def python_kernels_replaced(
    removed: Iterable[OpOverload],
    regions: Mapping[HigherOrderOperator, Callable[..., Any]],
    composites: Mapping[OpOverload, Callable[..., Any]] | None = None,
) -> Iterator[None]:
    """Without torch's Python kernels of `removed`, which decompose an op above any table; with other ones of `regions` and of
    `composites`, which ATen decomposes before any table."""
    overloads = list(removed)
    ops: list[OpOverload | HigherOrderOperator] = [*overloads, *regions, *(composites or ())]
    with LOCK:
        before = [dict(op.py_kernels) for op in ops]
        try:
            for overload in overloads:
                for key in (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd):
                    overload.py_kernels.pop(key, None)
            for region, function in regions.items():
                region.py_kernels[DispatchKey.Autograd] = function
            for composite, function in (composites or {}).items():
                composite.py_kernels[DispatchKey.CompositeImplicitAutograd] = function
            _clear_dispatch(ops)
            yield
        finally:
            for op, kernels in zip(ops, before, strict=True):
                op.py_kernels.clear()
                op.py_kernels.update(kernels)
            _clear_dispatch(ops)


def _clear_dispatch(ops: Sequence[OpOverload | HigherOrderOperator]) -> None:
    for op in ops:
        op._dispatch_cache.clear()


@contextmanager
def causal_mask_detection(replacement: Callable[..., bool]) -> Iterator[None]:
    """With `replacement` for nn.Transformer's look at whether a mask is causal, which reads the mask's values."""
    with LOCK:
        before = transformer._detect_is_causal_mask
        transformer._detect_is_causal_mask = replacement
        try:
            yield
        finally:
            transformer._detect_is_causal_mask = before


@contextmanager
def zero_and_one_not_specialized() -> Iterator[None]:
    """Sizes 0 and 1 are like any other: checks for broadcasting would otherwise guard every symbol to be 2 or more."""
    with LOCK, tracing_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


# -- errors that only their text tells apart ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """An error of torch that has no type of its own. texts: parts of its text, any of which identifies it."""

    texts: tuple[str, ...]

    def is_in(self, problem: BaseException) -> bool:
        return any(text in str(problem) for text in self.texts)


LOST_TENSOR = Message(
    ("fake tensor in the exported program constant's list", "object has no attribute 'constant'"),
)
"""torch.export lost a tensor that torch.func or torch.autograd made, because it records above them."""

NO_FLEX_BACKWARD = Message(("FlexAttention does not support backward on CPU",))
"""flex_attention got operands that require gradients."""

UNREGISTERED_CACHE = Message(("Cache'>",))
"""An input or a result is a cache of transformers, a class that torch.export has no pytree for."""

CONSTANT_MUTATION = Message(("is mutated in the forward method",))
"""run_decompositions met a write to a tensor that is neither a parameter nor a buffer."""

ALIASED_MUTATION = Message(("expected compiled_fn to be GraphModule",))
"""run_decompositions met a program that changes an input which is a part of another one, or is passed twice."""
